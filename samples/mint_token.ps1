#Requires -Version 7.2
<#
.SYNOPSIS
Mints a token for Jetway: signed (RS256), or signed and then encrypted to the gateway (RSA-OAEP-256, A256GCM).

.DESCRIPTION
Uses .NET classes only. The token goes to the pipeline. Verify it with
`jetway token inspect --key issuer.public.pem`.

.EXAMPLE
./mint_token.ps1 -SignKey issuer.private.pem -Claims claims/forward.json

.EXAMPLE
./mint_token.ps1 -SignKey issuer.private.pem -EncryptKey gateway.public.pem -DstHst pc1.corp.example:3389 `
    -Credential (Get-Credential)
#>
[CmdletBinding()]
param(
    # Private RSA key, PEM
    [Parameter(Mandatory)] [string] $SignKey,
    # Id of the signing key
    [string] $Kid,
    # The gateway's RSA public key, PEM
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

function Import-RsaKey([string] $Path) {
    $rsa = [Security.Cryptography.RSA]::Create()
    $rsa.ImportFromPem([IO.File]::ReadAllText((Resolve-Path -LiteralPath $Path).ProviderPath))
    $rsa
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
$header = [ordered]@{ alg = 'RS256'; typ = 'JWT' }
if ($Kid) { $header['kid'] = $Kid }
$signingInput = '{0}.{1}' -f (ConvertTo-Base64Url (ConvertTo-JsonBytes $header)),
    (ConvertTo-Base64Url (ConvertTo-JsonBytes $payload))
$rsa = Import-RsaKey $SignKey
try {
    $signature = $rsa.SignData(
        [Text.Encoding]::ASCII.GetBytes($signingInput),
        [Security.Cryptography.HashAlgorithmName]::SHA256,
        [Security.Cryptography.RSASignaturePadding]::Pkcs1)
}
finally {
    $rsa.Dispose()
}
$token = '{0}.{1}' -f $signingInput, (ConvertTo-Base64Url $signature)

if ($EncryptKey) {
    # RFC 7516, section 3.1: the signed token inside, a random content key encrypted to the gateway.
    $header = [ordered]@{ alg = 'RSA-OAEP-256'; enc = 'A256GCM'; cty = 'JWT' }
    if ($EncryptKid) { $header['kid'] = $EncryptKid }
    $protected = ConvertTo-Base64Url (ConvertTo-JsonBytes $header)
    $contentKey = [Security.Cryptography.RandomNumberGenerator]::GetBytes(32)
    $iv = [Security.Cryptography.RandomNumberGenerator]::GetBytes(12)
    $plaintext = [Text.Encoding]::ASCII.GetBytes($token)
    $ciphertext = [byte[]]::new($plaintext.Length)
    $tag = [byte[]]::new(16)
    $rsa = Import-RsaKey $EncryptKey
    # The constructor with a tag size came with PowerShell 7.4 and replaces this one; the array's length decides here.
    $aes = [Security.Cryptography.AesGcm]::new([byte[]] $contentKey)
    try {
        $encryptedKey = $rsa.Encrypt($contentKey, [Security.Cryptography.RSAEncryptionPadding]::OaepSHA256)
        $aes.Encrypt($iv, $plaintext, $ciphertext, $tag, [Text.Encoding]::ASCII.GetBytes($protected))
    }
    finally {
        $rsa.Dispose()
        $aes.Dispose()
        [Array]::Clear($contentKey, 0, $contentKey.Length)
    }
    $token = $protected, (ConvertTo-Base64Url $encryptedKey), (ConvertTo-Base64Url $iv),
        (ConvertTo-Base64Url $ciphertext), (ConvertTo-Base64Url $tag) -join '.'
}
$token
