#!/bin/bash
# Installs what is missing to build and test Jetway on Debian 12; does nothing, quickly, when all is there.
#
# usage: tests/install.sh [build] [peers] [ci] [bench]
#   build      what the build needs, and nothing else
#   (nothing)  what the tests without peers need: cargo-nextest, besides what the build needs
#   peers      the real clients and targets of tests/peers: FreeRDP 2 and 3, Remmina, guacd, rdesktop, aardwolf, xrdp,
#              weston, GNOME Remote Desktop, krb5kdc, Xvfb, Chromium, websockets, wscat, socat, OpenSSH, Xvnc, promtool,
#              Python's cryptography and the tools around them
#   ci         cargo-deny and cargo-fuzz
#   bench      what tests/bench compares with: HAProxy, FreeRDP's proxy, PyRDP, websocat, and ws of Node.js where that is
#              there; its real sessions also need peers
set -euo pipefail

packages=(gcc libssl-dev pkg-config)
tools=(cargo-nextest)
environments=()
extracted=()
unpacked=()
locked=()
modules=()
for part in "$@"; do
    case $part in
    build) tools=() ;;
    peers)
        packages+=(iproute2 xvfb xauth xdotool xclip x11-utils x11-apps x11-xserver-utils xterm openssl
            freerdp2-x11 freerdp2-shadow-x11 winpr-utils freerdp3-x11 freerdp3-shadow-x11 xrdp xorgxrdp
            # What Remmina shows is read as assistive technologies read it.
            remmina remmina-plugin-rdp openbox at-spi2-core gir1.2-atspi-2.0 python3-gi
            # GNOME Remote Desktop needs no shell, but a compositor, a place for its pictures and a terminal to show.
            gnome-remote-desktop mutter pipewire wireplumber dbus foot wl-clipboard
            # What guacd needs of this release, besides FreeRDP 2.
            libcairo2 libgcrypt20 libjpeg62-turbo libpng16-16 libssh2-1
            rdesktop fuse3 pulseaudio pulseaudio-utils weston xwayland python3-venv python3-cryptography curl util-linux
            # They come without a realm, and without one krb5kdc and kadmind do not start.
            krb5-kdc krb5-admin-server krb5-user faketime dnsmasq-base
            chromium libnss3-tools socat
            openssh-client openssh-server tigervnc-standalone-server)
        # Node.js often comes from elsewhere, and with its own npm.
        command -v node >/dev/null && command -v npm >/dev/null || packages+=(nodejs npm)
        environments+=(aardwolf websockets)
        extracted=(promtool:prometheus)
        unpacked=(guacd libguac19 libguac-client-rdp0 libssl1.1 libwebp6 libossp-uuid16)
        locked=(node)
        ;;
    ci) tools+=(cargo-deny cargo-fuzz) ;;
    bench)
        packages+=(haproxy freerdp3-proxy python3-venv)
        environments+=(pyrdp)
        tools+=(websocat)
        modules+=(ws@8.23.0)
        ;;
    *)
        echo "install.sh: unknown part '$part' (known: build, peers, ci, bench)" >&2
        exit 2
        ;;
    esac
done

root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n "$@"
    else
        echo "install.sh: root is needed for: $*" >&2
        return 1
    fi
}

apt_get() {
    root env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 -qq -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

# source_of SUITE: an apt source of another suite of Debian, which the machine's own mirror also serves.
source_of() {
    local mirror
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$codename" '$1 == "Debian" && $2 == release && $3 == "main" { print $4; exit }')
    if [ -z "$mirror" ]; then
        echo "install.sh: no apt source of Debian $codename to derive that of $1 from" >&2
        return 1
    fi
    cat <<SOURCE
Types: deb
URIs: $mirror
Suites: $1
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
}

# FreeRDP 3 is not in Debian 12 itself but in its backports.
add_backports() {
    local source
    source=$(source_of "$codename-backports")
    root tee /etc/apt/sources.list.d/jetway-backports.sources >/dev/null <<<"$source"
    apt_get update
}

# unpack FOLDER PACKAGE...: packages of Debian 11 that Debian 12 has no more, unpacked and not installed; the first is a
# server, which FOLDER/run starts. apt works in FOLDER alone, and checks their signatures as ever.
unpack() {
    local folder=$1 server=$2 apt=$1/apt package missing
    shift
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$folder/root"
    source_of bullseye >"$apt/bullseye.sources"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/bullseye.sources";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
APT::Sandbox::User "$(id -un)";
CONF
    APT_CONFIG=$apt/apt.conf apt-get -qq update
    (cd "$apt" && APT_CONFIG=$apt/apt.conf apt-get -qq download "$@")
    for package in "$apt"/*.deb; do
        dpkg -x "$package" "$folder/root"
    done
    rm -rf "$apt"
    cat >"$folder/run" <<RUN
#!/bin/sh
LD_LIBRARY_PATH=\$(echo $folder/root/usr/lib/*-linux-gnu) exec $folder/root/usr/sbin/$server "\$@"
RUN
    chmod 755 "$folder/run"
    missing=$(LD_LIBRARY_PATH=$(echo "$folder"/root/usr/lib/*-linux-gnu) ldd "$folder/root/usr/sbin/$server" \
        "$folder"/root/usr/lib/*-linux-gnu/*.so.* | grep 'not found' || true)
    if [ -n "$missing" ]; then
        echo "install.sh: $server lacks:" "$missing" >&2
        return 1
    fi
}

# extract PROGRAM PACKAGE: one program of a package whose installation would start a server.
extract() {
    local program=$1 package=$2 folder
    folder=$(mktemp --directory)
    apt_get update
    (cd "$folder" && apt-get -qq -o "APT::Sandbox::User=$(id -un)" download "$package")
    dpkg -x "$folder"/*.deb "$folder/root"
    mkdir -p "$cache"
    mv "$folder/root/usr/bin/$program" "$cache/$program"
    rm -rf "$folder"
}

installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null |
    sed -n 's/^installed //p' || true)
missing=()
for package in "${packages[@]}"; do
    grep -qxF "$package" <<<"$installed" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "install.sh: installing ${missing[*]}"
    apt_get update
    if [[ " ${missing[*]} " == *" freerdp3-"* ]] && ! apt-cache show freerdp3-x11 >/dev/null 2>&1; then
        add_backports
    fi
    apt_get install --yes --no-install-recommends "${missing[@]}" </dev/null
fi

# Clients in Python and in JavaScript, and PyRDP, a man in the middle; their environments are kept beside the caches of other
# tools.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/jetway-peers
for environment in "${environments[@]}"; do
    folder=$cache/$environment
    requirements=$(dirname "$0")/peers/$environment.txt
    if ! cmp --silent "$requirements" "$folder/requirements.txt"; then
        echo "install.sh: installing $environment"
        rm -rf "$folder"
        /usr/bin/python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --requirement "$requirements"
        cp "$requirements" "$folder/requirements.txt"
    fi
done
for program in "${extracted[@]}"; do
    if [ ! -x "$cache/${program%:*}" ]; then
        echo "install.sh: extracting $program"
        extract "${program%:*}" "${program#*:}"
    fi
done
# Apache Guacamole's daemon is in Debian 11 and not in 12.
if [ ${#unpacked[@]} -gt 0 ]; then
    folder=$cache/${unpacked[0]}
    if ! cmp --silent "$folder/packages" - <<<"${unpacked[*]}" || [ ! -x "$folder/run" ]; then
        echo "install.sh: unpacking ${unpacked[*]}"
        rm -rf "$folder"
        unpack "$folder" "${unpacked[@]}"
        # Written when all of it is there.
        echo "${unpacked[*]}" >"$folder/packages"
    fi
fi
for name in "${locked[@]}"; do
    folder=$cache/$name
    lock=$(dirname "$0")/peers/$name/package-lock.json
    # npm writes the second one when it is done.
    if ! cmp --silent "$lock" "$folder/package-lock.json" || [ ! -e "$folder/node_modules/.package-lock.json" ]; then
        echo "install.sh: installing the packages of $name"
        rm -rf "$folder"
        mkdir -p "$folder"
        cp "$(dirname "$lock")"/package*.json "$folder"
        npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --silent
    fi
done

# Node.js itself is the machine's.
for module in "${modules[@]}"; do
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/jetway-peers/${module%@*}
    if command -v npm >/dev/null && ! grep -qs "\"version\": \"${module#*@}\"" "$folder/node_modules/${module%@*}/package.json"; then
        echo "install.sh: installing $module"
        npm install --silent --no-audit --no-fund --no-save --no-package-lock --prefix "$folder" "$module"
    fi
done

for tool in "${tools[@]}"; do
    if ! command -v "$tool" >/dev/null && [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/$tool" ]; then
        echo "install.sh: installing $tool"
        cargo install --locked "$tool"
    fi
done
