#Requires -Version 7.2
<#
.SYNOPSIS
Mints a token for Jetway: signed, or signed and then encrypted to the gateway.

.DESCRIPTION
Uses .NET classes only, and takes the PEM files of `jetway keys new`: EC keys (--alg ES256, ES384, ES512; ECDH-ES) and RSA
keys (RS256; RSA-OAEP-256). .NET has no Ed25519, and a shared secret is no PEM: for those there is mint_token.py.
The token goes to the pipeline. Verify it with `jetway token inspect --key sign:keys/issuer.public.pem`.

Jetway's own tests have no PowerShell to run this with. What they prove is that the key that these lines derive is the one
that the gateway derives, with the prefix and suffix that are written here.

.EXAMPLE
samples/mint_token.ps1 -SignKey keys/issuer.private.pem -Claims samples/claims/forward.json

.EXAMPLE
samples/mint_token.ps1 -SignKey keys/issuer.private.pem -EncryptKey keys/gateway.public.pem `
    -DstHst pc42.corp.example:3389 -Credential (Get-Credential)
#>
[CmdletBinding()]
param(
    # Private EC or RSA key, PEM
    [Parameter(Mandatory)] [string] $SignKey,
    # Id of the signing key
    [string] $Kid,
    # The gateway's public EC or RSA key, PEM
    [string] $EncryptKey,
    # Id of the encryption key
    [string] $EncryptKid,
    # JSON file with claims
    [string] $Claims,
    # Destination, HOST:PORT
    [string] $DstHst,
    # Life, seconds
    [int] $Lifetime = 120,
    # User name and password for the target; needs -EncryptKey
    [pscredential] $Credential
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# RFC 7515, section 2: no padding.
function ConvertTo-Base64Url([byte[]] $Bytes) {
    [Convert]::ToBase64String($Bytes).TrimEnd('=').Replace('+', '-').Replace('/', '_')
}

function ConvertTo-JsonBytes([System.Collections.IDictionary] $Value) {
    , [Text.Encoding]::UTF8.GetBytes((ConvertTo-Json -InputObject $Value -Compress -Depth 10))
}

# The first class that takes the key: each refuses those of another kind.
function Import-Key([string] $Path, [type[]] $Kinds) {
    $pem = [IO.File]::ReadAllText((Resolve-Path -LiteralPath $Path).ProviderPath)
    foreach ($kind in $Kinds) {
        $key = $kind::Create()
        try {
            $key.ImportFromPem($pem)
            return $key
        }
        catch {
            $key.Dispose()
        }
    }
    throw "$Path is no PEM file with an EC or RSA key that fits"
}

# A curve, by the size of its keys: its name, its signature algorithm and the hash of that.
$curves = @{
    256 = 'P-256', 'ES256', [Security.Cryptography.HashAlgorithmName]::SHA256
    384 = 'P-384', 'ES384', [Security.Cryptography.HashAlgorithmName]::SHA384
    521 = 'P-521', 'ES512', [Security.Cryptography.HashAlgorithmName]::SHA512
}

$payload = [ordered]@{}
if ($Claims) {
    $read = Get-Content -LiteralPath $Claims -Raw | ConvertFrom-Json -AsHashtable
    foreach ($name in $read.Keys) { $payload[$name] = $read[$name] }
}
if ($DstHst) {
    $payload['dst_hst'] = $DstHst
    if (-not $payload.Contains('jet_cm')) { $payload['jet_cm'] = 'fwd' }
}
if ($Credential) {
    $payload['dst_usr'] = $Credential.UserName
    $payload['dst_pwd'] = $Credential.GetNetworkCredential().Password
}
foreach ($secret in 'dst_usr', 'dst_pwd', 'prx_usr', 'prx_pwd') {
    if ($payload.Contains($secret) -and -not $EncryptKey) {
        throw "$secret is a secret: it needs -EncryptKey"
    }
}
$now = [DateTimeOffset]::UtcNow.ToUnixTimeSeconds()
$defaults = [ordered]@{ jti = [guid]::NewGuid().ToString(); iat = $now; nbf = $now; exp = $now + $Lifetime }
foreach ($name in $defaults.Keys) {
    if (-not $payload.Contains($name)) { $payload[$name] = $defaults[$name] }
}

# RFC 7515, section 3.1: header.payload.signature
$key = Import-Key $SignKey ([Security.Cryptography.ECDsa], [Security.Cryptography.RSA])
try {
    $isEc = $key -is [Security.Cryptography.ECDsa]
    $header = [ordered]@{ alg = if ($isEc) { $curves[$key.KeySize][1] } else { 'RS256' }; typ = 'JWT' }
    if ($Kid) { $header['kid'] = $Kid }
    $signingInput = '{0}.{1}' -f (ConvertTo-Base64Url (ConvertTo-JsonBytes $header)),
        (ConvertTo-Base64Url (ConvertTo-JsonBytes $payload))
    $message = [Text.Encoding]::ASCII.GetBytes($signingInput)
    if ($isEc) {
        # Both numbers at full size, as RFC 7518, section 3.4 wants them: the form that .NET writes.
        $signature = $key.SignData([byte[]] $message, $curves[$key.KeySize][2])
    }
    else {
        $signature = $key.SignData(
            [byte[]] $message,
            [Security.Cryptography.HashAlgorithmName]::SHA256,
            [Security.Cryptography.RSASignaturePadding]::Pkcs1)
    }
}
finally {
    $key.Dispose()
}
$token = '{0}.{1}' -f $signingInput, (ConvertTo-Base64Url $signature)

if ($EncryptKey) {
    # RFC 7516, section 3.1: the signed token inside, and a content key that the gateway alone can have.
    $header = [ordered]@{ alg = 'RSA-OAEP-256'; enc = 'A256GCM'; cty = 'JWT' }
    $key = Import-Key $EncryptKey ([Security.Cryptography.ECDiffieHellman], [Security.Cryptography.RSA])
    try {
        if ($key -is [Security.Cryptography.ECDiffieHellman]) {
            # RFC 7518, section 4.6: agreed on by an ephemeral key. One round of the Concat KDF is SHA-256 of the number of the
            # round, the secret, and what the key is for (its algorithm, no names, 256 bits), which .NET takes as prefix and suffix.
            $header['alg'] = 'ECDH-ES'
            $prefix = [byte[]] (0, 0, 0, 1)
            $suffix = [byte[]] (0, 0, 0, 7) + [Text.Encoding]::ASCII.GetBytes('A256GCM') + [byte[]] (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)
            $ephemeral = [Security.Cryptography.ECDiffieHellman]::Create($key.ExportParameters($false).Curve)
            try {
                $contentKey = $ephemeral.DeriveKeyFromHash(
                    $key.PublicKey,
                    [Security.Cryptography.HashAlgorithmName]::SHA256,
                    $prefix,
                    [byte[]] $suffix)
                $point = $ephemeral.ExportParameters($false).Q
            }
            finally {
                $ephemeral.Dispose()
            }
            $header['epk'] = [ordered]@{
                kty = 'EC'
                crv = $curves[$key.KeySize][0]
                x   = ConvertTo-Base64Url $point.X
                y   = ConvertTo-Base64Url $point.Y
            }
            $encryptedKey = [byte[]]::new(0)
        }
        else {
            $contentKey = [Security.Cryptography.RandomNumberGenerator]::GetBytes(32)
            $encryptedKey = $key.Encrypt($contentKey, [Security.Cryptography.RSAEncryptionPadding]::OaepSHA256)
        }
    }
    finally {
        $key.Dispose()
    }
    if ($EncryptKid) { $header['kid'] = $EncryptKid }
    $protected = ConvertTo-Base64Url (ConvertTo-JsonBytes $header)
    $iv = [Security.Cryptography.RandomNumberGenerator]::GetBytes(12)
    $plaintext = [Text.Encoding]::ASCII.GetBytes($token)
    $ciphertext = [byte[]]::new($plaintext.Length)
    $tag = [byte[]]::new(16)
    # The constructor with a tag size came with PowerShell 7.4 and replaces this one; the array's length decides here.
    $aes = [Security.Cryptography.AesGcm]::new([byte[]] $contentKey)
    try {
        $aes.Encrypt($iv, $plaintext, $ciphertext, $tag, [Text.Encoding]::ASCII.GetBytes($protected))
    }
    finally {
        $aes.Dispose()
        [Array]::Clear($contentKey, 0, $contentKey.Length)
    }
    $token = $protected, (ConvertTo-Base64Url $encryptedKey), (ConvertTo-Base64Url $iv),
        (ConvertTo-Base64Url $ciphertext), (ConvertTo-Base64Url $tag) -join '.'
}
$token
