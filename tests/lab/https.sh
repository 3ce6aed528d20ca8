#!/bin/bash
# In the machine: a certificate for a host name with its chain, the key, the authority that it leads to, and another key.
#
#   https.sh DIRECTORY NAME DAYS
set -euo pipefail
directory=$1 name=$2 days=$3
mkdir -p "$directory"
cd "$directory"
new=(openssl req -batch -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

: >>index
[ -e authority.pem ] || "${new[@]}" -x509 -days 90 -subj /CN=own -keyout authority.key -out authority.pem 2>/dev/null
"${new[@]}" -subj "/CN=$name" -keyout other.key -out /dev/null 2>/dev/null
"${new[@]}" -subj "/CN=$name" -keyout privkey.pem -out request 2>/dev/null
chmod 600 ./*.key privkey.pem
printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE\n' "$name" >extensions
# openssl x509 refuses a negative number of days, but accepts times.
openssl ca -batch -notext -md sha256 -config <(
    cat <<END
[ca]
default_ca = own
[own]
database = index
new_certs_dir = .
rand_serial = yes
unique_subject = no
policy = any
copy_extensions = none
[any]
commonName = supplied
END
) -startdate "$(date --utc --date='-10 days' +%Y%m%d%H%M%SZ)" -enddate "$(date --utc --date="$days days" +%Y%m%d%H%M%SZ)" \
    -cert authority.pem -keyfile authority.key -extfile extensions -in request -out leaf.pem 2>/dev/null
cat leaf.pem authority.pem >fullchain.pem
