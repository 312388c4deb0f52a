"""A CA, another one, a server's certificate for this machine, and a stock node's key: certificates.py FOLDER"""
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

def name(text): return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
def made(subject, key, issuer, signer, ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    b = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
         .not_valid_after(now + datetime.timedelta(days=2)).add_extension(x509.BasicConstraints(ca, None), True))
    if not ca:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        b = b.add_extension(x509.SubjectAlternativeName(names), False)
    return b.sign(signer, hashes.SHA256()).public_bytes(s.Encoding.PEM)

folder = sys.argv[1]
for ca in ("ca", "other"):
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    open(f"{folder}/{ca}.pem", "wb").write(made(ca, root, ca, root, True))
    if ca == "ca":
        open(f"{folder}/server.pem", "wb").write(made("server", leaf, ca, root, False))
        private = leaf.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        open(f"{folder}/server.key", "wb").write(private)
key = ec.generate_private_key(ec.SECP384R1())
open(f"{folder}/stock.key", "wb").write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
open(f"{folder}/stock.pub", "wb").write(key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH))
