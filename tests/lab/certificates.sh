#!/bin/bash
# In the machine: a certificate authority that Debian's store trusts from now on, and a certificate of its for localhost;
# beside it a certificate for localhost that nobody trusts. certificates.sh DIRECTORY
set -euo pipefail
directory=$1
mkdir -p "$directory"
cd "$directory"
new=(openssl req -batch -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

"${new[@]}" -x509 -days 2 -subj "/CN=lab" -keyout authority.key -out authority.crt
for name in trusted untrusted; do
    "${new[@]}" -subj "/CN=localhost" -keyout "$name.key" -out "$name.csr"
done
printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n' >extensions
openssl x509 -req -days 2 -in trusted.csr -CA authority.crt -CAkey authority.key -CAcreateserial -extfile extensions -out trusted.crt
openssl x509 -req -days 2 -in untrusted.csr -signkey untrusted.key -extfile extensions -out untrusted.crt
cp authority.crt /usr/local/share/ca-certificates/lab.crt
update-ca-certificates
# The lab's Debian has no file of hosts.
echo "127.0.0.1 localhost" >>/etc/hosts
