#!/bin/bash
# Writes the files of pebble, a certificate authority for tests, into a directory: a certificate of its own server, which is
# also the root to trust it by, and its configuration.
#
#   pebble.sh DIRECTORY ACME_PORT MANAGEMENT_PORT HTTP_PORT LIFETIME EAB
#
# HTTP_PORT is where pebble looks for the answers to challenges, LIFETIME is that of certificates in seconds, and EAB is true
# if an account needs an external account binding, with the key ID kid-1 and the key below.
set -euo pipefail
directory=$1 acme_port=$2 management_port=$3 http_port=$4 lifetime=$5 eab=$6
mkdir -p "$directory"
cd "$directory"

openssl req -batch -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pebble \
    -addext "subjectAltName=IP:127.0.0.1,DNS:localhost" -addext "basicConstraints=critical,CA:FALSE" \
    -keyout key.pem -out cert.pem 2>openssl.err || {
    cat openssl.err >&2
    exit 1
}
cat >pebble.json <<END
{
    "pebble": {
        "listenAddress": "127.0.0.1:$acme_port",
        "managementListenAddress": "127.0.0.1:$management_port",
        "certificate": "$directory/cert.pem",
        "privateKey": "$directory/key.pem",
        "httpPort": $http_port,
        "tlsPort": 1,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": $eab,
        "externalAccountMACKeys": { "kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W" },
        "domainBlocklist": ["blocked.example"],
        "retryAfter": { "authz": 1, "order": 1 },
        "certificateValidityPeriod": $lifetime
    }
}
END
