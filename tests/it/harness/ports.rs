//! Chooses free ports on loopback.
//!
//! The ports are below the range that the kernel gives to outgoing connections. A port of that range could be taken
//! between the choice and the moment its server binds it (or binds it again after a restart).

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rand::RngExt;

/// One locked file for each port of this process. A broker binds its ports seconds after they are chosen. Until then
/// only this file keeps other tests from choosing the same port.
static CHOSEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// An address without a listener now, which no other test is going to use.
pub(crate) fn free_address() -> SocketAddr {
    let mut random = rand::rng();
    (0..1000)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, random.random_range(13_000..20_000))))
        .find(|address| is_ours(address.port()) && TcpListener::bind(address).is_ok())
        .expect("a thousand ports tried and none is free")
}

/// Whether no other test has chosen this port. If so, the port stays ours until this process ends.
fn is_ours(port: u16) -> bool {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
    std::fs::create_dir_all(&folder).expect("a folder for the ports that tests have chosen");
    let file = File::create(folder.join(port.to_string())).expect("a file for a port");
    let ours = file.try_lock().is_ok();
    if ours {
        CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }
    ours
}

/// `N` different free ports.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_address().port())
}

#[test]
fn free_ports_are_free_and_different() {
    let ports = free_ports::<8>();
    let listeners: Vec<_> =
        ports.iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap()).collect();
    assert_eq!(listeners.len(), 8);
}

#[test]
fn a_port_is_chosen_once() {
    let port = free_address().port();
    let other = File::open(Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports").join(port.to_string()));
    assert!(other.unwrap().try_lock().is_err(), "as any other test would try it");
    assert!(!is_ours(port));
}
