#!/usr/bin/env python3
"""Mints a token for Jetway: signed, or signed and then encrypted to the gateway.

Needs Python 3.9 and the package `cryptography`; the JOSE formats are written out here, so that this file can be read as
their description. Takes the keys that `jetway keys new` makes, whatever its --alg: a JWK says itself what it is for, and
of PEM an EC key is for ES256 (or that of its curve) and ECDH-ES, an RSA key for RS256 and RSA-OAEP-256.

    mint_token.py --sign-key keys/issuer.private.pem --claims samples/claims/forward.json
    mint_token.py --sign-key keys/issuer.private.pem --encrypt-key keys/gateway.public.pem \\
        --claims samples/claims/forward.json --dst-usr 'CORP\\alice' --dst-pwd-file password.txt

The token goes to standard output, or with --out into a file for its owner alone. Verify it with `jetway token inspect --key sign:keys/issuer.public.pem`.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import os
import sys
import time
import uuid

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

SECRET_CLAIMS = ("dst_usr", "dst_pwd", "prx_usr", "prx_pwd")

# Per curve: its name in JWK, its signature algorithm, and the size of a coordinate and of each half of a signature.
CURVES = {
    "secp256r1": ("P-256", "ES256", 32),
    "secp384r1": ("P-384", "ES384", 48),
    "secp521r1": ("P-521", "ES512", 66),
}
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def base64url(data: bytes) -> str:
    """RFC 7515, section 2: no padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode_json(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def from_jwk(jwk: dict):
    """RFC 7518, section 6: a key of `cryptography`, or the bytes of a shared secret."""
    kty = jwk.get("kty")

    def number(name: str) -> int:
        return int.from_bytes(from_base64url(jwk[name]), "big")

    if kty == "oct":
        return from_base64url(jwk["k"])
    if kty == "EC":
        curves = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
        public = ec.EllipticCurvePublicNumbers(number("x"), number("y"), curves[jwk["crv"]]())
        if "d" in jwk:
            return ec.EllipticCurvePrivateNumbers(number("d"), public).private_key()
        return public.public_key()
    if kty == "RSA":
        public = rsa.RSAPublicNumbers(number("e"), number("n"))
        if "d" in jwk:
            parts = (number(name) for name in ("p", "q", "d", "dp", "dq", "qi"))
            return rsa.RSAPrivateNumbers(*parts, public).private_key()
        return public.public_key()
    if kty == "OKP" and jwk.get("crv") == "Ed25519" and "d" in jwk:
        return ed25519.Ed25519PrivateKey.from_private_bytes(from_base64url(jwk["d"]))
    raise SystemExit(f"a JWK of type {kty} that is of no use here")


def read_key(path: str, private: bool):
    """The key in a PEM or JWK file, and the algorithm and the id that a JWK names."""
    with open(path, "rb") as file:
        data = file.read()
    if data.lstrip().startswith(b"{"):
        jwk = json.loads(data)
        return from_jwk(jwk), jwk.get("alg"), jwk.get("kid")
    if private:
        return serialization.load_pem_private_key(data, None), None, None
    return serialization.load_pem_public_key(data), None, None


def sign(claims: dict, key, alg: str | None, kid: str | None) -> str:
    """RFC 7515, section 3.1: header.payload.signature, the algorithm following from the key."""
    if isinstance(key, rsa.RSAPrivateKey):
        alg = alg or "RS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        alg = CURVES[key.curve.name][1]
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        alg = "EdDSA"
    elif isinstance(key, bytes):
        alg = alg or "HS256"
    else:
        raise SystemExit("the signing key is no private RSA, P-256, P-384, P-521 or Ed25519 key, and no shared secret")

    header = {"alg": alg, "typ": "JWT"}
    if kid:
        header["kid"] = kid
    signing_input = f"{base64url(encode_json(header))}.{base64url(encode_json(claims))}"
    message = signing_input.encode("ascii")

    # RFC 7518, sections 3.2 to 3.5.
    if alg == "EdDSA":
        signature = key.sign(message)
    else:
        family, digest = alg[:2], HASHES[alg[2:]]
        if family == "HS":
            signature = hmac.digest(key, message, digest.name)
        elif family == "RS":
            signature = key.sign(message, padding.PKCS1v15(), digest)
        elif family == "PS":
            signature = key.sign(message, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            size = CURVES[key.curve.name][2]
            # Both numbers at full size, not ASN.1.
            r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
            signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return f"{signing_input}.{base64url(signature)}"


def agree(key: ec.EllipticCurvePublicKey, name: str, size: int) -> tuple[dict, bytes]:
    """RFC 7518, section 4.6: a key of so many bytes, agreed on by an ephemeral key, whose public half goes into the header."""
    ephemeral = ec.generate_private_key(key.curve)
    numbers = ephemeral.public_key().public_numbers()
    curve, _, coordinate = CURVES[key.curve.name]
    x, y = (base64url(part.to_bytes(coordinate, "big")) for part in (numbers.x, numbers.y))
    # Section 4.6.2: the algorithm that the key is for, no names of either side, and its size in bits.
    other_info = b"".join(
        (len(name).to_bytes(4, "big"), name.encode("ascii"), bytes(4), bytes(4), (size * 8).to_bytes(4, "big"))
    )
    derive = ConcatKDFHash(hashes.SHA256(), size, other_info)
    return {"kty": "EC", "crv": curve, "x": x, "y": y}, derive.derive(ephemeral.exchange(ec.ECDH(), key))


def encrypt(token: str, key, alg: str | None, kid: str | None) -> str:
    """RFC 7516, section 3.1: the signed token inside, AES-GCM around it, and the content key as the gateway's key has it."""
    enc = "A256GCM"
    content_key = AESGCM.generate_key(bit_length=256)
    encrypted_key = b""
    header = {}
    if isinstance(key, rsa.RSAPublicKey):
        alg = alg or "RSA-OAEP-256"
        digest = hashes.SHA256() if alg == "RSA-OAEP-256" else hashes.SHA1()
        encrypted_key = key.encrypt(content_key, padding.OAEP(padding.MGF1(digest), digest, None))
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        alg = alg or "ECDH-ES"
        if alg == "ECDH-ES":
            header["epk"], content_key = agree(key, enc, 32)
        else:
            # ECDH-ES+A128KW or ECDH-ES+A256KW: what is agreed on wraps the content key.
            header["epk"], wrapping = agree(key, alg, {"A128KW": 16, "A256KW": 32}[alg.partition("+")[2]])
            encrypted_key = keywrap.aes_key_wrap(wrapping, content_key)
    elif isinstance(key, bytes) and alg == "A256KW":
        encrypted_key = keywrap.aes_key_wrap(key, content_key)
    elif isinstance(key, bytes):
        alg, content_key = "dir", key
    else:
        raise SystemExit("the encryption key is no public RSA, P-256, P-384 or P-521 key, and no shared secret")

    header = {"alg": alg, "enc": enc, "cty": "JWT", **header}
    if kid:
        header["kid"] = kid
    protected = base64url(encode_json(header))
    iv = os.urandom(12)
    # The header is authenticated along with the content; the tag is its last 16 bytes.
    sealed = AESGCM(content_key).encrypt(iv, token.encode("ascii"), protected.encode("ascii"))
    parts = (encrypted_key, iv, sealed[:-16], sealed[-16:])
    return ".".join([protected, *map(base64url, parts)])


def read_password(path: str) -> str:
    if path == "-":
        return sys.stdin.readline().rstrip("\r\n")
    with open(path, encoding="utf-8-sig") as file:
        return file.readline().rstrip("\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Mints a token for Jetway.")
    parser.add_argument("--sign-key", required=True, help="private key or shared secret, PEM or JWK")
    parser.add_argument("--kid", help="id of the signing key; a JWK has its own")
    parser.add_argument("--encrypt-key", help="the gateway's public key or a shared secret, PEM or JWK")
    parser.add_argument("--encrypt-kid", help="id of the encryption key; a JWK has its own")
    parser.add_argument("--claims", help="JSON file with claims")
    parser.add_argument("--dst-hst", help="destination, HOST:PORT")
    parser.add_argument("--lifetime", type=int, default=120, help="seconds")
    parser.add_argument("--dst-usr", help="user name for the target")
    parser.add_argument("--dst-pwd-file", help="file with the password for the target, - for standard input")
    parser.add_argument("--out", help="file for the token, readable by its owner only; standard output if not given")
    options = parser.parse_args()

    claims = {}
    if options.claims:
        with open(options.claims, encoding="utf-8-sig") as file:
            claims = json.load(file)
    if options.dst_hst:
        claims["dst_hst"] = options.dst_hst
        claims.setdefault("jet_cm", "fwd")
    if bool(options.dst_usr) != bool(options.dst_pwd_file):
        raise SystemExit("--dst-usr and --dst-pwd-file belong together")
    if options.dst_usr:
        claims["dst_usr"] = options.dst_usr
        claims["dst_pwd"] = read_password(options.dst_pwd_file)
    secret = next((name for name in SECRET_CLAIMS if name in claims), None)
    if secret and not options.encrypt_key:
        raise SystemExit(f"{secret} is a secret: it needs --encrypt-key")

    now = int(time.time())
    claims.setdefault("jti", str(uuid.uuid4()))
    claims.setdefault("iat", now)
    claims.setdefault("nbf", now)
    claims.setdefault("exp", now + options.lifetime)

    key, alg, kid = read_key(options.sign_key, private=True)
    token = sign(claims, key, alg, options.kid or kid)
    if options.encrypt_key:
        key, alg, kid = read_key(options.encrypt_key, private=False)
        token = encrypt(token, key, alg, options.encrypt_kid or kid)
    if options.out:
        with os.fdopen(os.open(options.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)
            print(token, file=file)
    else:
        print(token)


if __name__ == "__main__":
    main()
