//! A private certificate authority, and servers of a test with certificates of it.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate authority that no system trusts.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Corporate CA");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Writes the certificate of the authority in PEM.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> String {
        write(folder, name, &self.issuer.pem()).to_str().unwrap().to_owned()
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn issue(&self, name: &str, years: Range<i32>) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes a server's certificate and its key. Returns both paths.
    pub(crate) fn server_files(&self, folder: &Path, name: &str, years: Range<i32>) -> [String; 2] {
        let (certificate, key) = self.issue(name, years);
        let files = [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())];
        files.map(|(file, pem)| write(folder, file, &pem).to_str().unwrap().to_owned())
    }

    /// The settings of a client that trusts this authority, with or without a certificate of its own.
    pub(crate) fn client_config(&self, with_certificate: bool) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        if !with_certificate {
            return builder.with_no_client_auth();
        }
        let (certificate, key) = self.issue("servicenow", 2020..2090);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
    }

    /// A client certificate with its key, in one file.
    pub(crate) fn client(&self, folder: &Path) -> String {
        let (certificate, key) = self.issue("causeway-client", 2020..2090);
        let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
        write(folder, "client.pem", &pem).to_str().unwrap().to_owned()
    }

    /// A server side with a certificate for this name and these years. With `asks` it takes only clients with a
    /// certificate of this authority.
    pub(crate) fn server(&self, name: &str, years: Range<i32>, asks: bool) -> TlsAcceptor {
        let (certificate, key) = self.issue(name, years);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let builder = if asks {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            ServerConfig::builder().with_client_cert_verifier(verifier)
        } else {
            ServerConfig::builder().with_no_client_auth()
        };
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Listens on a free port, and passes the decrypted bytes of each connection to `target`. With `postgres` a connection
/// begins as PostgreSQL's does. Returns the port.
pub(crate) async fn tls_in_front_of(target: SocketAddr, acceptor: TlsAcceptor, postgres: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    super::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            super::spawn(async move {
                if postgres {
                    // SSLRequest, and the answer "yes".
                    let mut request = [0; 8];
                    let _ = stream.read_exact(&mut request).await;
                    let _ = stream.write_all(b"S").await;
                }
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let Ok(mut behind) = TcpStream::connect(target).await else { return };
                let _ = copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    port
}
