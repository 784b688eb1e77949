//! Sessions that the gateway stands inside of: it logs on to the target with credentials that nobody types.

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::lab::clipboard::{self, Copied};
use crate::lab::forge;
use crate::lab::freerdp::{FreeRdp, Version, exit};
use crate::lab::gateway::{Gateway, Grant, Protection};
use crate::lab::log::{CLOSED, Line, REFUSED};
use crate::lab::shadow::{Program, Security, Shadow};
use crate::lab::target::{self, Place, Target, TargetKind};
use crate::lab::workspace::{self, Workspace};
use crate::lab::xrdp::Xrdp;

macro_rules! logons {
    ($($name:ident: $version:ident, $target:ident, $options:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            a_token_alone_reaches_the_desktop(
                Version::$version,
                &$options,
                Graphics::Any,
                |workspace| target::start(workspace, TargetKind::$target),
            )
        }
    )*};
}

// The client shows another user and another password: what it types counts for nothing.
logons! {
    freerdp2_with_a_token_alone_reaches_the_nla_desktop: Two, ShadowNla, ["/sec:tls"];
    freerdp3_with_a_token_alone_reaches_the_nla_desktop: Three, ShadowNla, ["/sec:tls"];
    freerdp2_that_offers_nla_is_let_in_by_the_token_alone: Two, ShadowNla, [];
    freerdp3_that_offers_nla_is_let_in_by_the_token_alone: Three, ShadowNla, [];
    freerdp2_with_a_token_alone_reaches_the_tls_desktop: Two, ShadowTls, [];
    freerdp3_with_a_token_alone_reaches_the_tls_desktop: Three, ShadowTls, [];
    freerdp2_with_a_token_alone_is_logged_on_to_xrdp: Two, Xrdp, ["/sec:tls"];
    freerdp3_with_a_token_alone_is_logged_on_to_xrdp: Three, Xrdp, ["/sec:tls"];
}

/// Which way the picture comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Graphics {
    /// As the two agree.
    Any,
    /// The graphics pipeline, a dynamic channel, in this codec.
    Pipeline(&'static str),
    /// Updates of the desktop, without the pipeline, in this codec.
    Updates(&'static str),
}

macro_rules! graphics {
    ($($name:ident: $version:ident, $program:ident, $path:ident($codec:expr), $options:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            let graphics = Graphics::$path($codec);
            a_token_alone_reaches_the_desktop(Version::$version, &$options, graphics, |workspace| {
                let target = Shadow::start_program(workspace, Program::$program, Security::Nla)?;
                Ok(Box::new(target))
            })
        }
    )*};
}

graphics! {
    freerdp3_shows_the_same_picture_with_avc444: Three, Three, Pipeline("AVC444v2"), [];
    freerdp3_shows_the_same_picture_with_avc420: Three, Three, Pipeline("AVC420"), ["/gfx:AVC420:on"];
    freerdp3_shows_the_same_picture_with_egfx_remotefx: Three, Three, Pipeline("RemoteFX"), ["/gfx:rfx"];
    freerdp3_shows_the_same_picture_with_egfx_progressive: Three, Three, Pipeline("RemoteFX Progressive"), ["/gfx:progressive"];
    freerdp3_shows_the_same_picture_with_bitmaps: Three, Three, Updates("compressed bitmap"), ["/network:modem"];
    freerdp3_shows_the_same_picture_with_16_bit_bitmaps: Three, Three, Updates("compressed bitmap"), ["/network:modem", "/bpp:16"];
    freerdp3_shows_the_same_picture_with_remotefx: Three, Three, Updates("RemoteFX"), ["+rfx", "/network:modem"];
    freerdp2_shows_the_same_picture_with_avc444: Two, Three, Pipeline("AVC444v2"), [];
    freerdp2_shows_the_same_picture_with_avc420: Two, Three, Pipeline("AVC420"), ["/gfx:AVC420"];
    freerdp2_shows_the_same_picture_with_remotefx: Two, Two, Updates("RemoteFX"), ["/rfx"];
    freerdp2_shows_the_same_picture_with_16_bit_bitmaps: Two, Two, Updates("compressed bitmap"), ["/bpp:16"];
}

/// The desktop of a direct session and the desktop through Jetway are the same picture, typed keys arrive, the session
/// is accounted for in one line, and no secret is in what the gateway shows.
fn a_token_alone_reaches_the_desktop(
    version: Version,
    options: &[&str],
    graphics: Graphics,
    start: impl FnOnce(&Workspace) -> Result<Box<dyn Target>>,
) -> Result<()> {
    workspace::run(|workspace| {
        let target = start(workspace)?;
        let place = target.place();
        let mut arguments = vec![format!("/v:{}", place.address())];
        arguments.extend(
            options
                .iter()
                .filter(|option| !option.starts_with("/sec:"))
                .map(|option| (*option).to_owned()),
        );
        let mut direct = FreeRdp::start(workspace, "direct", version, &arguments, place)?;
        let expected = direct.wait_for_desktop(place)?;
        direct.end();

        let gateway = Gateway::start_inside_for(workspace, &*target)?;
        let token = gateway.token_with(
            &place.address(),
            &Grant::logon(&place.user, &place.password),
        )?;
        let mut client = through(
            workspace,
            &gateway,
            "client",
            version,
            &token,
            options,
            &stranger(place),
        )?;
        client.wait_for_picture(workspace, &expected)?;
        client.type_until_it_arrives(place)?;
        let live = gateway.live_sessions()?;
        let [live] = live.as_array().map(Vec::as_slice).unwrap_or_default() else {
            bail!("not one live session: {live}");
        };
        client.end();

        let line = the_only(gateway.wait_for(CLOSED, 1)?)?;
        ensure!(gateway.logged(REFUSED)?.is_empty(), "nothing was refused");
        ensure!(
            line.field("target")
                .is_some_and(|target| target.contains(&place.address())),
            "{line:?}"
        );
        for field in ["session", "peer", "reason", "token"] {
            ensure!(
                line.field(field).is_some_and(|value| !value.is_empty()),
                "{field}: {line:?}"
            );
        }
        ensure!(line.number("bytes_to_target")? > 1000, "{line:?}");
        ensure!(line.number("bytes_to_client")? > 1000, "{line:?}");

        the_only(gateway.logged(SECURED)?)?;
        let events = gateway.audit()?;
        for event in ["client", "logon_requested", "channel_opened"] {
            ensure!(
                events.iter().any(|told| told["event"] == event),
                "no {event}: {events:?}"
            );
        }
        let pipeline = events.iter().any(|event| {
            event["event"] == "channel_opened" && event["channel"] == GRAPHICS_PIPELINE
        });
        let inside = &live["inside"]["statistics"];
        let codec = match graphics {
            Graphics::Any => None,
            Graphics::Pipeline(codec) => {
                ensure!(pipeline, "no graphics pipeline: {events:?}");
                Some(codec)
            }
            Graphics::Updates(codec) => {
                ensure!(!pipeline, "a graphics pipeline: {events:?}");
                Some(codec)
            }
        };
        if let Some(codec) = codec {
            ensure!(
                inside["codecs"][codec].as_u64().is_some(),
                "no {codec}: {live}"
            );
        }
        ensure!(inside["user"] == place.user, "{live}");
        ensure!(inside["keys"].as_u64() > Some(20), "{live}");
        let secrets = [token.as_str(), &place.password, WRONG_PASSWORD];
        ensure!(
            !secrets
                .iter()
                .any(|secret| live.to_string().contains(secret)),
            "the operator is shown a secret"
        );
        gateway.keeps_secret(&[&token, &place.password, WRONG_PASSWORD])
    })
}

#[test]
fn freerdp2_with_the_proxy_password_reaches_the_nla_desktop() -> Result<()> {
    the_proxy_password_reaches_the_desktop(Version::Two, TargetKind::ShadowNla)
}

#[test]
fn freerdp3_with_the_proxy_password_reaches_the_nla_desktop() -> Result<()> {
    the_proxy_password_reaches_the_desktop(Version::Three, TargetKind::ShadowNla)
}

#[test]
fn freerdp3_with_the_proxy_password_reaches_the_tls_desktop() -> Result<()> {
    the_proxy_password_reaches_the_desktop(Version::Three, TargetKind::ShadowTls)
}

#[test]
fn freerdp2_may_write_its_user_in_another_case_beyond_ascii() -> Result<()> {
    the_user_may_be_written_in_another_case(Version::Two)
}

#[test]
fn freerdp3_may_write_its_user_in_another_case_beyond_ascii() -> Result<()> {
    the_user_may_be_written_in_another_case(Version::Three)
}

fn the_user_may_be_written_in_another_case(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let grant = Grant {
            proxy: Some(("Jörg", "Of-The-Proxy-1")),
            ..Grant::logon(&place.user, &place.password)
        };
        let token = gateway.token_with(&place.address(), &grant)?;
        let visitor = |user: &str| Place {
            user: user.to_owned(),
            password: "Of-The-Proxy-1".to_owned(),
            ..place.clone()
        };
        let session = |role: &str, user: &str| {
            let (options, user) = (["/sec:nla"], visitor(user));
            through(workspace, &gateway, role, version, &token, &options, &user)
        };
        let code = session("another", "JORG")?.exit_code()?;
        ensure!(code == exit::LOGON_FAILURE, "exit code {code}");
        let client = session("client", "JÖRG")?;
        let opened = the_only(gateway.wait_for(SECURED, 1)?)?;
        ensure!(
            opened.field("client_logon").as_deref() == Some("ntlm"),
            "{opened:?}"
        );
        drop(client);
        Ok(())
    })
}

fn the_proxy_password_reaches_the_desktop(version: Version, kind: TargetKind) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, kind)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &*target)?;
        let (token, visitor) = proxied(&gateway, place)?;
        let mut client = through(
            workspace,
            &gateway,
            "client",
            version,
            &token,
            &["/sec:nla"],
            &visitor,
        )?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        let secured = the_only(gateway.logged(SECURED)?)?;
        ensure!(
            secured.number("client_protocol")? & HYBRID != 0,
            "{secured:?}"
        );
        gateway.keeps_secret(&[&token, &place.password, &visitor.password])
    })
}

#[test]
fn freerdp2_with_a_wrong_proxy_password_never_reaches_the_logon() -> Result<()> {
    a_wrong_proxy_password_never_reaches_the_logon(Version::Two)
}

#[test]
fn freerdp3_with_a_wrong_proxy_password_never_reaches_the_logon() -> Result<()> {
    a_wrong_proxy_password_never_reaches_the_logon(Version::Three)
}

fn a_wrong_proxy_password_never_reaches_the_logon(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        // Its log would tell of a logon with a password that it does not know.
        let target = Shadow::start(workspace, Security::Nla)?;
        let mut place = target.place().clone();
        place.password.push_str("-wrong");
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let (token, mut visitor) = proxied(&gateway, &place)?;
        visitor.password.push_str("-wrong");
        let mut client = through(
            workspace,
            &gateway,
            "client",
            version,
            &token,
            &["/sec:nla"],
            &visitor,
        )?;
        let code = client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        ensure!(
            refused[0].rule_and_reason().starts_with("client-leg: "),
            "{refused:?}"
        );
        ensure!(code == exit::LOGON_FAILURE, "exit code {code}");
        ensure!(gateway.logged(CLOSED)?.is_empty(), "a session was opened");
        ensure!(gateway.logged(SECURED)?.is_empty(), "legs were secured");
        ensure!(
            !target.output()?.contains(LOGON_DENIED),
            "the target was asked to log on: {}",
            target.output()?
        );
        gateway.keeps_secret(&[&token, &place.password, &visitor.password])
    })
}

#[test]
fn freerdp2_is_told_of_a_target_that_denies_the_logon() -> Result<()> {
    the_user_is_told_of_a_target_that_denies_the_logon(Version::Two)
}

#[test]
fn freerdp3_is_told_of_a_target_that_denies_the_logon() -> Result<()> {
    the_user_is_told_of_a_target_that_denies_the_logon(Version::Three)
}

/// freerdp-shadow-cli 3 denies the logon in CredSSP, by a status that names its last error and not the password.
fn the_user_is_told_of_a_target_that_denies_the_logon(version: Version) -> Result<()> {
    a_wrong_target_password_opens_nothing(
        version,
        Program::Three,
        "target-credentials: the target does not accept the credentials: ERROR_MORE_DATA (Win32 error 234, 0xC00700EA)",
        "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED",
    )
}

/// freerdp-shadow-cli 2 closes without a word, and where it does says what of.
#[test]
fn freerdp2_is_told_of_a_target_that_closes_at_its_logon() -> Result<()> {
    a_wrong_target_password_opens_nothing(
        Version::Two,
        Program::Two,
        "target-credentials: the target does not accept the credentials",
        "ERRINFO_SERVER_FRESH_CREDENTIALS_REQUIRED",
    )
}

fn a_wrong_target_password_opens_nothing(
    version: Version,
    program: Program,
    reason: &str,
    told: &str,
) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start_program(workspace, program, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let address = place.address();
        let token = gateway.token_with(&address, &Grant::logon(&place.user, WRONG_PASSWORD))?;
        let user = stranger(place);
        let mut client = through(workspace, &gateway, "client", version, &token, &[], &user)?;
        let code = client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        ensure!(
            refused[0].rule_and_reason().starts_with(reason),
            "not {reason}: {refused:?}"
        );
        ensure!(code != 0, "exit code {code}");
        expect_told(&client, told)?;
        ensure!(gateway.logged(SECURED)?.is_empty(), "legs were secured");
        ensure!(gateway.logged(CLOSED)?.is_empty(), "a session was opened");
        gateway.keeps_secret(&[&token, WRONG_PASSWORD])
    })
}

/// Three sessions under a log at its most talkative: one that works, one whose client does not know the password of the
/// proxy, and one whose token does not know that of the target.
#[test]
fn the_log_at_trace_holds_no_secret_of_any_session() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside_at_trace(workspace, "first-use")?;
        let version = Version::Three;
        let options = ["/sec:nla"];

        let (good, visitor) = proxied(&gateway, place)?;
        let mut client = through(
            workspace, &gateway, "good", version, &good, &options, &visitor,
        )?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;

        let (denied, mut mistaken) = proxied(&gateway, place)?;
        mistaken.password = "Not-Of-The-Proxy-1".to_owned();
        let mut client = through(
            workspace, &gateway, "denied", version, &denied, &options, &mistaken,
        )?;
        client.exit_code()?;
        gateway.wait_for(REFUSED, 1)?;

        let mut stale = place.clone();
        stale.password = WRONG_PASSWORD.to_owned();
        let (refused, visitor) = proxied(&gateway, &stale)?;
        let mut client = through(
            workspace, &gateway, "refused", version, &refused, &options, &visitor,
        )?;
        client.exit_code()?;
        gateway.wait_for(REFUSED, 2)?;

        let traced = |line: &Line| line.field("level").as_deref() == Some("TRACE");
        ensure!(gateway.log()?.iter().any(traced), "it is not talkative");
        ensure!(
            gateway.keeps_secret(&[&place.user]).is_err(),
            "the search does not even find what is there"
        );
        gateway.keeps_secret(&[
            &good,
            &denied,
            &refused,
            &place.password,
            &visitor.password,
            &mistaken.password,
            WRONG_PASSWORD,
        ])
    })
}

#[test]
fn a_target_that_changes_its_certificate_is_refused() -> Result<()> {
    workspace::run(|workspace| {
        let mut target = Shadow::start(workspace, Security::Nla)?;
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let place = target.place().clone();
        let session = |role: &str| {
            let grant = Grant::logon(&place.user, &place.password);
            let token = gateway.token_with(&place.address(), &grant)?;
            let user = stranger(&place);
            through(workspace, &gateway, role, Version::Two, &token, &[], &user)
        };
        for (count, role) in ["first", "second"].into_iter().enumerate() {
            let mut client = session(role)?;
            client.wait_for_desktop(&place)?;
            client.end();
            gateway.wait_for(CLOSED, count + 1)?;
        }
        let uses: Vec<Option<String>> = gateway
            .logged(SECURED)?
            .iter()
            .map(|line| line.field("first_use"))
            .collect();
        ensure!(
            uses == [Some("true".to_owned()), Some("false".to_owned())],
            "{uses:?}"
        );

        target.change_certificate(workspace)?;
        let mut client = session("third")?;
        let code = client.exit_code()?;
        ensure!(code != 0, "exit code {code}");
        let refused = gateway.wait_for(REFUSED, 1)?;
        ensure!(
            refused[0]
                .rule_and_reason()
                .starts_with("target-certificate: "),
            "{refused:?}"
        );
        expect_told(&client, "ERRINFO_CB_CONNECTION_ERROR_INVALID_SETTINGS")?;
        ensure!(gateway.logged(CLOSED)?.len() == 2, "a session was opened");
        Ok(())
    })
}

#[test]
fn the_certificate_that_a_token_names_is_the_only_one() -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let gateway = Gateway::start_inside(workspace, "accept-any")?;
        let place = target.place();
        let session = |role: &str, thumbprint: &str| {
            let grant = Grant {
                certificate: Some(thumbprint),
                ..Grant::logon(&place.user, &place.password)
            };
            let token = gateway.token_with(&place.address(), &grant)?;
            let user = stranger(place);
            through(
                workspace,
                &gateway,
                role,
                Version::Three,
                &token,
                &[],
                &user,
            )
        };
        let mut client = session("other", &"5a".repeat(32))?;
        client.exit_code()?;
        let refused = gateway.wait_for(REFUSED, 1)?;
        ensure!(
            refused[0]
                .rule_and_reason()
                .starts_with("target-certificate: "),
            "{refused:?}"
        );
        ensure!(gateway.logged(SECURED)?.is_empty(), "legs were secured");

        let mut client = session("same", &target.thumbprint(workspace)?)?;
        client.wait_for_desktop(place)?;
        Ok(())
    })
}

/// With `session.inspect = "always"` the gateway stands inside of sessions that bring no credentials of its own, too.
#[test]
fn freerdp3_logs_on_to_xrdp_by_itself_and_is_seen() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let always = "[session]\ninspect = \"always\"";
        let gateway = Gateway::start_inside_with(workspace, "first-use", always)?;
        let token = gateway.token(&place.address(), Protection::Signed)?;
        let version = Version::Three;
        let mut client = through(workspace, &gateway, "client", version, &token, &[], place)?;
        client.wait_for_desktop(place)?;
        client.type_until_it_arrives(place)?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        let logon = json!({ "event": "logon_requested", "user": place.user, "has_password": true });
        gateway.wait_for_audit(&logon)?;
        gateway.keeps_secret(&[&token, &place.password])
    })
}

#[test]
fn freerdp2_and_xrdp_share_the_clipboard() -> Result<()> {
    the_clipboard_is_shared(Version::Two)
}

#[test]
fn freerdp3_and_xrdp_share_the_clipboard() -> Result<()> {
    the_clipboard_is_shared(Version::Three)
}

fn the_clipboard_is_shared(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let user = stranger(place);
        let options = ["+clipboard"];
        let mut client = through(
            workspace, &gateway, "client", version, &token, &options, &user,
        )?;
        client.wait_for_desktop(place)?;

        let to_target = "to the target: é 漢";
        let copied = Copied::text(workspace, "copy-here", client.command("xclip"), to_target)?;
        clipboard::wait_for_text(to_target, || target.command("xclip"))?;
        drop(copied);

        let to_client = "to the client: ß 字";
        let copied = Copied::text(workspace, "copy-there", target.command("xclip")?, to_client)?;
        clipboard::wait_for_text(to_client, || Ok(client.command("xclip")))?;
        drop(copied);
        client.end();

        the_only(gateway.wait_for(CLOSED, 1)?)?;
        let offered = gateway
            .audit()?
            .iter()
            .filter(|event| event["event"] == "clipboard_offered")
            .count();
        ensure!(offered >= 2, "{offered} offers were recorded");
        gateway.keeps_secret(&[&token, &place.password, to_target, to_client])
    })
}

#[test]
fn freerdp2_session_ends_when_its_target_dies() -> Result<()> {
    session_ends_when_its_target_dies(Version::Two)
}

#[test]
fn freerdp3_session_ends_when_its_target_dies() -> Result<()> {
    session_ends_when_its_target_dies(Version::Three)
}

fn session_ends_when_its_target_dies(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let mut target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place().clone();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let user = stranger(&place);
        let mut client = through(workspace, &gateway, "client", version, &token, &[], &user)?;
        client.wait_for_desktop(&place)?;
        target.kill();
        client.exit_code()?;
        the_only(gateway.wait_for(CLOSED, 1)?).map(drop)
    })
}

#[test]
fn freerdp2_session_ends_when_its_token_is_revoked() -> Result<()> {
    session_ends_when_its_token_is_revoked(Version::Two)
}

#[test]
fn freerdp3_session_ends_when_its_token_is_revoked() -> Result<()> {
    session_ends_when_its_token_is_revoked(Version::Three)
}

fn session_ends_when_its_token_is_revoked(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Shadow::start(workspace, Security::Nla)?;
        let place = target.place();
        let gateway = Gateway::start_inside(workspace, "first-use")?;
        let mut claims = forge::good_claims(&place.address())?;
        claims.insert("dst_usr".to_owned(), json!(place.user));
        claims.insert("dst_pwd".to_owned(), json!(place.password));
        let id = claims["jti"].as_str().unwrap_or_default().to_owned();
        let keys = gateway.keys();
        let signed = forge::sign_es256(&keys.signing, &claims)?;
        let token = forge::encrypted(&keys.encryption_public, &signed)?;
        let user = stranger(place);
        let mut client = through(workspace, &gateway, "client", version, &token, &[], &user)?;
        client.wait_for_desktop(place)?;
        gateway.revoke(&["another token"])?;
        client.type_until_it_arrives(place)?;

        gateway.revoke(&["another token", &id])?;
        let code = client.exit_code()?;
        ensure!(code != 0, "the client must know that it was cut off");
        let closed = the_only(gateway.wait_for(CLOSED, 1)?)?;
        let reason = closed.field("reason").unwrap_or_default();
        ensure!(reason.contains("revoked"), "{closed:?}");
        ensure!(closed.field("token").as_deref() == Some(&id), "{closed:?}");
        Ok(())
    })
}

/// The client shows `told`, the code of the Set Error Info PDU.
///
/// FreeRDP 3 does not announce RNS_UD_CS_SUPPORT_ERRINFO_PDU and shows the code all the same.
pub(crate) fn expect_told(client: &FreeRdp, told: &str) -> Result<()> {
    let output = client.output()?;
    ensure!(output.contains(told), "not {told}: {output}");
    Ok(())
}

/// A client called `role` that goes through the gateway with `token`.
pub(crate) fn through(
    workspace: &Workspace,
    gateway: &Gateway,
    role: &str,
    version: Version,
    token: &str,
    options: &[&str],
    user: &Place,
) -> Result<FreeRdp> {
    let mut arguments = vec![format!("/v:{}", gateway.address()), format!("/pcb:{token}")];
    arguments.extend(options.iter().map(|option| (*option).to_owned()));
    FreeRdp::start(workspace, role, version, &arguments, user)
}

/// Somebody whom no target knows.
pub(crate) fn stranger(place: &Place) -> Place {
    Place {
        user: "stranger".to_owned(),
        password: WRONG_PASSWORD.to_owned(),
        ..place.clone()
    }
}

/// A token whose client must show a password of the gateway's own, and who knows that password.
fn proxied(gateway: &Gateway, place: &Place) -> Result<(String, Place)> {
    let visitor = Place {
        user: "visitor".to_owned(),
        password: "Of-The-Proxy-1".to_owned(),
        ..place.clone()
    };
    let grant = Grant {
        proxy: Some((&visitor.user, &visitor.password)),
        ..Grant::logon(&place.user, &place.password)
    };
    Ok((gateway.token_with(&place.address(), &grant)?, visitor))
}

/// Exactly one line tells of it.
pub(crate) fn the_only(lines: Vec<Line>) -> Result<Line> {
    ensure!(lines.len() == 1, "one line per session: {lines:?}");
    lines
        .into_iter()
        .next()
        .ok_or_else(|| anyhow::anyhow!("a line"))
}

pub(crate) const SECURED: &str = "Session opened";
const GRAPHICS_PIPELINE: &str = "Microsoft::Windows::RDS::Graphics";
pub(crate) const WRONG_PASSWORD: &str = "Not-The-Target-1";
/// PROTOCOL_HYBRID and PROTOCOL_HYBRID_EX.
const HYBRID: u64 = 0x2 | 0x8;
/// What freerdp-shadow-cli logs when the NTLM response does not fit the password.
pub(crate) const LOGON_DENIED: &str = "client authentication failure";
