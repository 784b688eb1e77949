#!/usr/bin/env python3
"""Mints a token for Jetway: signed, or signed and then encrypted to the gateway.

Needs Python 3.9 and the package `cryptography`; the JOSE formats are written out here, so that this file can be read as
their description.

    mint_token.py --sign-key issuer.private.pem --claims claims/forward.json
    mint_token.py --sign-key issuer.private.pem --encrypt-key gateway.public.pem \\
        --claims claims/forward.json --dst-usr 'CORP\\alice' --dst-pwd-file password.txt

The token goes to standard output. Verify it with `jetway token inspect --key issuer.public.pem`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
import uuid

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SECRET_CLAIMS = ("dst_usr", "dst_pwd", "prx_usr", "prx_pwd")

# Per curve: the algorithm's name, its hash, and the size of each half of a signature.
ECDSA = {
    "secp256r1": ("ES256", hashes.SHA256(), 32),
    "secp384r1": ("ES384", hashes.SHA384(), 48),
    "secp521r1": ("ES512", hashes.SHA512(), 66),
}


def base64url(data: bytes) -> str:
    """RFC 7515, section 2: no padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def encode_json(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def sign(claims: dict, key, kid: str | None) -> str:
    """RFC 7515, section 3.1: header.payload.signature, the algorithm following from the key."""
    if isinstance(key, rsa.RSAPrivateKey):
        alg = "RS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ECDSA:
        alg = ECDSA[key.curve.name][0]
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        alg = "EdDSA"
    else:
        raise SystemExit("the signing key is not RSA, P-256, P-384, P-521 or Ed25519")

    header = {"alg": alg, "typ": "JWT"}
    if kid:
        header["kid"] = kid
    signing_input = f"{base64url(encode_json(header))}.{base64url(encode_json(claims))}"
    message = signing_input.encode("ascii")

    if alg == "RS256":
        signature = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    elif alg == "EdDSA":
        signature = key.sign(message)
    else:
        _, digest, size = ECDSA[key.curve.name]
        # RFC 7518, section 3.4: both numbers at full size, not ASN.1.
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return f"{signing_input}.{base64url(signature)}"


def encrypt(token: str, key, kid: str | None) -> str:
    """RFC 7516, section 3.1: the signed token inside, RSA-OAEP-256 around a random key, AES-256-GCM around the token."""
    if not isinstance(key, rsa.RSAPublicKey):
        raise SystemExit("the encryption key is not an RSA public key")
    header = {"alg": "RSA-OAEP-256", "enc": "A256GCM", "cty": "JWT"}
    if kid:
        header["kid"] = kid
    protected = base64url(encode_json(header))
    content_key = AESGCM.generate_key(bit_length=256)
    iv = os.urandom(12)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    encrypted_key = key.encrypt(content_key, oaep)
    # The header is authenticated along with the content; the tag is its last 16 bytes.
    sealed = AESGCM(content_key).encrypt(iv, token.encode("ascii"), protected.encode("ascii"))
    parts = (encrypted_key, iv, sealed[:-16], sealed[-16:])
    return ".".join([protected, *map(base64url, parts)])


def read_password(path: str) -> str:
    if path == "-":
        return sys.stdin.readline().rstrip("\r\n")
    with open(path, encoding="utf-8") as file:
        return file.readline().rstrip("\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Mints a token for Jetway.")
    parser.add_argument("--sign-key", required=True, help="private key, PEM")
    parser.add_argument("--kid", help="id of the signing key")
    parser.add_argument("--encrypt-key", help="the gateway's RSA public key, PEM")
    parser.add_argument("--encrypt-kid", help="id of the encryption key")
    parser.add_argument("--claims", help="JSON file with claims")
    parser.add_argument("--dst-hst", help="destination, HOST:PORT")
    parser.add_argument("--lifetime", type=int, default=120, help="seconds")
    parser.add_argument("--dst-usr", help="user name for the target")
    parser.add_argument("--dst-pwd-file", help="file with the password for the target, - for standard input")
    options = parser.parse_args()

    claims = {}
    if options.claims:
        with open(options.claims, encoding="utf-8") as file:
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

    with open(options.sign_key, "rb") as file:
        token = sign(claims, serialization.load_pem_private_key(file.read(), None), options.kid)
    if options.encrypt_key:
        with open(options.encrypt_key, "rb") as file:
            key = serialization.load_pem_public_key(file.read())
        token = encrypt(token, key, options.encrypt_kid)
    print(token)


if __name__ == "__main__":
    main()
