"""Command lines with one secret each, and command lines without any."""

from __future__ import annotations

from typing import Final

#: Stands for the secret in a word.
SECRET: Final = "§"  # noqa: S105 - no password
#: A secret without a known form, which only its position shows.
PLAIN: Final = "s3cr3t-Value"


def _words(command: str) -> list[str]:
    """Return the words of a command: those in curly quotes may have spaces."""
    words, rest = [], command
    while rest:
        if rest.startswith("“"):
            word, _, rest = rest[1:].partition("”")
            rest = rest.removeprefix(" ")
        else:
            word, _, rest = rest.partition(" ")
        words.append(word)
    return words


#: Secrets that an option, a name or an address shows.
BY_POSITION: Final = [
    _words(command)
    for command in (
        "mysql --password=§ db",
        "mysql -u root -p§ db",
        "/usr/bin/mysqldump -p§ db",
        "tool --password § --verbose",
        "tool -password §",
        "tool --token=§",
        "tool --api-key § x",
        "tool --client-secret=§",
        "env PGPASSWORD=§ psql -h db",
        "docker run -e MYSQL_ROOT_PASSWORD=§ mysql",
        "docker run --env=SECRET_TOKEN=§ img",
        "docker login -u me -p § host",
        "podman login --password § host",
        "curl -u user:§ https://host/",
        "curl -uuser:§ https://host/",
        "curl -sSfu user:§ https://host/",
        "curl --user user:§ https://host/",
        "curl --proxy-user user:§ https://host/",
        "curl -H “Authorization: Bearer §” https://host/",
        "curl “-HAuthorization: Basic §” https://host/",
        "curl --header “X-Api-Key: §” https://host/",
        "curl “--header=Private-Token: §” https://host/",
        "curl -H “Cookie: theme=dark; sid=§” https://host/",
        "curl -b session=§ https://host/",
        "curl --oauth2-bearer § https://host/",
        "curl https://user:§@host/path",
        "curl https://§@host/path",
        "curl https://host/?page=1&token=§&size=2",
        "curl https://host/?sv=2024-01-01&sig=§",
        "curl https://host/?key=§#top",
        "curl https://bucket.host/k?X-Amz-Signature=§&x=1",
        'curl “-d{"user": "me", "password": "§"}” https://host/',
        "curl -d user=me&password=§&x=1 https://host/",
        "psql postgres://user:§@db:5432/app",
        "app amqp://user:§@mq:5672/vhost",
        "redis-cli -u redis://:§@host:6379/0",
        "redis-cli -a § ping",
        "mongosh -u me -p § host",
        "app “Server=db;User Id=sa;Password=§;Encrypt=true”",
        "app DefaultEndpointsProtocol=https;AccountName=x;AccountKey=§;EndpointSuffix=y",
        "app Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=§",
        "sshpass -p § ssh host",
        "sshpass -p§ ssh host",
        "openssl enc -aes256 -pass pass:§",
        "openssl enc -k § -in x",
        "keytool -storepass § -list",
        "gpg --passphrase § -c x",
        "java -Djavax.net.ssl.keyStorePassword=§ -jar app.jar",
        "aws configure set aws_secret_access_key §",
        "npm config set //host/:_authToken §",
        "npm config set //host/:_authToken=§",
        "git -c “http.extraheader=AUTHORIZATION: basic §” fetch",
        "git clone https://oauth2:§@host/group/project",
        "kubectl --token=§ get pods",
        "kubectl create secret generic x --from-literal=password=§",
        "ldapsearch -D cn=me -w § -b dc=x",
        "smbclient //host/share -U me%§",
        "nmcli device wifi connect net password §",
        "7z x -p§ archive.7z",
        "unzip -P § archive.zip",
        "sqlplus scott/§@db",
        "snmpwalk -v2c -c § host",
        "mosquitto_sub -u me -P § -t x",
        "xfreerdp /u:me /p:§ /v:host",
        "vault login §",
        "skopeo copy --src-creds me:§ a b",
        "http -a me:§ host",
        "mount -t cifs -o username=me,password=§ //h/s /mnt",
        "plink -pw § host",
        "sh -c “PGPASSWORD=§ psql -h db”",
        "bash -c “mysql -u root -p§ db | gzip”",
        "bash -c “curl -H 'Authorization: Bearer §' https://host/”",
        "bash -c “curl -u user:§ https://host/ > x”",
        'bash -c “sh -c "mysql --password=§ db"”',
        "bash -lc “export TOKEN=§; run”",
        "“worker: connecting with password=§ to db”",
        "env SECRET_KEY_BASE=§ rails s",
        "env ENCRYPTION_KEY=§ app",
        "env JWT=§ app",
        "app --jwt § x",
        "app --cookie-secret § x",
        "app --private-key-password § x",
        "http --auth=§ host",
        "app --auth me:§ host",
        "bash -c “run 'Bearer §'”",
        "curl -d user=me&password%3D§&x=1 https://host/",
        'curl “-d{"user": "me", "password": "a\\"§"}” https://host/',
        'curl “-d{\\"user\\": \\"me\\", \\"password\\": \\"a\\\\\\"§\\"}” https://host/',
        "curl “-d<db><password>§</password><host>h</host></db>” https://host/",
        'curl “-d<s:Password Type="text">§</s:Password>” https://host/',
        "python “-cimport os; os.environ['TOKEN'] = '§'; run()”",
        "node “-efetch(u, {headers: {authorization: `Bearer §`}})”",
        "sh -c “mysql --password='a'\"'\"'§' db”",
        "kubectl create secret generic x --from-literal=user=§",
        "vault kv put secret/x user=§",
    )
]
_BASE62: Final = "Ab3De6Gh9Jk2Mn5Pq8St1Vw4Yz7Bc0Df" * 2
_CAPITALS: Final = _BASE62.upper()
_HEX: Final = "0a1b2c3d4e5f6789" * 3
#: Starts of known tokens, each with the characters that follow.
TOKENS: Final = [
    *((start, _CAPITALS[:16]) for start in ("AKIA", "ASIA")),
    *((start, _BASE62[:36]) for start in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "npm_", "hf_")),
    *((start, _BASE62[:24]) for start in ("glpat-", "gldt-", "glrt-", "glcbt-", "glsa_", "glc_")),
    *((start, _BASE62[:24]) for start in ("xoxb-", "xoxp-", "xapp-", "pypi-", "xai-", "pplx-")),
    *((start, _BASE62[:40]) for start in ("sk-ant-api03-", "sk-proj-", "sk-", "github_pat_")),
    *((start, _BASE62[:24]) for start in ("sk_live_", "sk_test_", "rk_live_", "whsec_", "gsk_")),
    *((start, _BASE62[:35]) for start in ("AIza", "ya29.", "GOCSPX-", "hvs.", "dp.pt.", "SG.")),
    *((start, _HEX[:40]) for start in ("pul-", "key-", "dop_v1_", "shpat_", "dapi")),
    *((start, _BASE62[:40]) for start in ("ATATT3", "NRAK-", "PMAK-", "tskey-auth-", "lin_api_")),
    ("dckr_pat_", _BASE62[:27]),
    ("eyJ", f"{_BASE62[:20]}.eyJ{_BASE62[:30]}.{_BASE62[:40]}"),
    ("AGE-SECRET-KEY-1", _CAPITALS[:50]),
    ("Ab18Q~", _BASE62[:33]),
    ("hooks.slack.com/services/", f"T{_BASE62[:8]}/B{_BASE62[:8]}/{_BASE62[:24]}"),
    (
        "-----BEGIN RSA PRIVATE KEY",
        f"-----\n{_BASE62}\n{_BASE62}\n-----END RSA PRIVATE KEY-----",
    ),
]  # fmt: skip
ORDINARY: Final = [
    _words(command)
    for command in (
        "ls -la /etc",
        "python3 -m http.server 8080",
        "curl -sS https://example.com/a?b=c&page=2",
        "curl -u alice https://host/",
        "curl --key client.pem --cert client.crt https://host/",
        "curl https://host:8443/users/a@b.example",
        "curl http://[::1]:8080/",
        "curl -H “Accept: application/json” https://host/",
        "ssh -p 2222 git@host",
        "git clone ssh://git@host/group/project.git",
        "git clone git@host:group/project.git",
        "git commit -m “fix the token parser”",
        "docker run -p 8080:80 -u 1000:1000 nginx",
        "docker build --secret id=npmrc,src=.npmrc .",
        "docker login -u me --password-stdin host",
        "psql -h db -p 5432 -U app",
        "psql postgres://user@db:5432/app",
        "mysql -u root -p db",
        "mysql --password --host db",
        "kubectl get secret regcred -o yaml",
        "kubectl apply -f secret.yaml",
        "vault login -method=oidc",
        "grep -r password .",
        "grep -rn token src",
        "passwd root",
        "cat /etc/passwd /run/secrets/token",
        "tar -xzf archive.tar.gz",
        "python3 train.py --max-tokens=100 --tokenizer=bert --token-limit 5",
        "openssl s_client -connect host:443",
        "env PWD=/home/me OLDPWD=/tmp bash",
        "ssh-keygen -t ed25519 -f key",
        "nginx: worker process",
        "postgres: app db 10.0.0.1(4242) idle",
        "/usr/lib/systemd/systemd --user",
        "ffmpeg --bypass=1 --compass=2",
        "cmake -DCMAKE_BUILD_TYPE=Release",
        "rsync -avz a me@host:b",
        "ping6 ::1",
        "java -Xmx1g -jar app.jar",
        "node index.js --author=me",
        "make -j4 KEY=VALUE",
        "bash -c “echo hello; ls | wc -l”",
        "nc -vz 203.0.113.7 443",
        "dig @8.8.8.8 example.com",
        "wget -q -O - http://169.254.169.254/latest/meta-data/",
        "apt-key list",
        "systemctl restart auth.service",
        "zip -r a.zip folder",
        "pip install --keyring-provider=auto x",
        "ssh -o PasswordAuthentication=no -o PubkeyAuthentication=yes host",
        "sh -c “ssh -o PasswordAuthentication=no host”",
        "sh -c “TOKEN=`cat /run/token` run”",
        "psql -U app --no-password mydb",
        "kubectl config set-credentials me --client-certificate=c.pem",
        "openvpn --config c.ovpn --auth SHA256",
        "ffmpeg -i a.mp4 -pass 1 out.mp4",
        "gcc -o a a.c -lcrypto",
        "deno run npm:chalk@5.3.0",
        "docker pull registry.example.com/team/app@sha256:0123456789abcdef",
        "docker run -e POSTGRES_PASSWORD_FILE=/run/secrets/pw postgres",
        "aws iam create-access-key --user-name me",
    )
]
