//! Free ports on loopback.
//!
//! Taken from below the range the kernel hands out to outgoing connections, since a port from that range can be taken by
//! anybody between the moment we choose it and the moment its server binds it (or binds it again after a restart).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rand::Rng;

/// An address that nobody listens on right now.
pub(crate) fn free_address() -> SocketAddr {
    let mut random = rand::rng();
    (0..1000)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, random.random_range(13_000..20_000))))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a thousand ports tried and none is free")
}

/// `N` different free ports.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let mut ports = [0; N];
    for index in 0..N {
        ports[index] = loop {
            let port = free_address().port();
            if !ports.contains(&port) {
                break port;
            }
        };
    }
    ports
}

#[test]
fn free_ports_are_free_and_different() {
    let ports = free_ports::<8>();
    let listeners: Vec<_> =
        ports.iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap()).collect();
    assert_eq!(listeners.len(), 8);
}
