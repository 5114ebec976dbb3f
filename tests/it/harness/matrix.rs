//! The engines that a test runs on: each test is written once and runs on every engine.
//!
//! ```ignore
//! on_every_engine! {
//!     async fn keeps_order(bench: Bench) { /* bench.settings() */ }
//! }
//! ```
//! makes `keeps_order::embedded`, `keeps_order::rabbit_3_10` and `keeps_order::rabbit_4_3`. The tests on RabbitMQ are
//! ignored unless `tests/run` or `--run-ignored all` selects them. A selected test fails if its engine is missing, so
//! no test passes without having run. `on_every_rabbit!` is the same without the embedded engine, `on_newest_rabbit!` has
//! only RabbitMQ 4.3. `tests/run` leaves tests out by these names, if an engine is missing.

use tempfile::TempDir;

use super::broker::{Broker, Version, Vhost};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Embedded,
    Rabbit310,
    Rabbit43,
}

/// A fresh, empty place on one engine, which is deleted afterwards.
#[derive(Debug)]
pub(crate) struct Bench {
    engine: Engine,
    /// Every engine has a data folder, because the directory of conversations is there.
    folder: TempDir,
    vhost: Option<Vhost>,
}

impl Engine {
    /// Creates a bench. Fails the test if the machine lacks the engine.
    pub(crate) fn bench(self) -> Option<Bench> {
        let vhost = match self {
            Engine::Embedded => None,
            Engine::Rabbit310 => Some(Broker::shared(Version::V310)?.vhost()),
            Engine::Rabbit43 => Some(Broker::shared(Version::V43)?.vhost()),
        };
        let folder = tempfile::tempdir().expect("a data folder");
        Some(Bench { engine: self, folder, vhost })
    }
}

impl Bench {
    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// The data folder of this test.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The test's own vhost, on the RabbitMQ engines.
    pub(crate) fn vhost(&self) -> Option<&Vhost> {
        self.vhost.as_ref()
    }

    /// The settings that select this place, by their keys in the settings file.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let folder = ("data_dir".to_owned(), self.folder.path().display().to_string());
        let url = self.vhost.as_ref().map(|vhost| ("queue.url".to_owned(), vhost.url()));
        std::iter::once(folder).chain(url).collect()
    }
}

/// One `#[tokio::test]` for each engine.
macro_rules! on_every_engine {
    ($(async fn $name:ident($bench:ident: Bench) $body:block)+) => { $(
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from around it")]
            use super::*;
            on_engines!(@body ($bench) $body);
            on_engines!(@test embedded => Embedded);
            on_engines!(@test #[ignore = "needs RabbitMQ: tests/run starts it"] rabbit_3_10 => Rabbit310);
            on_engines!(@test #[ignore = "needs RabbitMQ 4.3: tests/run starts it"] rabbit_4_3 => Rabbit43);
        }
    )+ };
}

/// One `#[tokio::test]` for each RabbitMQ version.
macro_rules! on_every_rabbit {
    ($(async fn $name:ident($bench:ident: Bench) $body:block)+) => { $(
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from around it")]
            use super::*;
            on_engines!(@body ($bench) $body);
            on_engines!(@test #[ignore = "needs RabbitMQ: tests/run starts it"] rabbit_3_10 => Rabbit310);
            on_engines!(@test #[ignore = "needs RabbitMQ 4.3: tests/run starts it"] rabbit_4_3 => Rabbit43);
        }
    )+ };
}

/// One `#[tokio::test]` on the newest RabbitMQ, for a test whose subject is not the broker.
macro_rules! on_newest_rabbit {
    ($(async fn $name:ident($bench:ident: Bench) $body:block)+) => { $(
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from around it")]
            use super::*;
            on_engines!(@body ($bench) $body);
            on_engines!(@test #[ignore = "needs RabbitMQ 4.3: tests/run starts it"] rabbit_4_3 => Rabbit43);
        }
    )+ };
}

macro_rules! on_engines {
    (@body ($bench:ident) $body:block) => {
        async fn body($bench: $crate::harness::matrix::Bench) $body
    };
    (@test $(#[$when:meta])? $test:ident => $engine:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        $(#[$when])?
        async fn $test() {
            let bench = $crate::harness::matrix::Engine::$engine.bench();
            body(bench.expect("an engine that is missing has failed the test")).await;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    on_every_engine! {
        async fn every_engine_gets_a_place_of_its_own(bench: Bench) {
            let other = bench.engine().bench().expect("what was there once");
            assert_ne!(bench.settings(), other.settings());
            let chosen = bench.settings().iter().any(|(key, _)| key == "queue.url");
            assert_eq!(chosen, bench.engine() != Engine::Embedded);
        }
    }

    on_every_rabbit! {
        async fn a_rabbit_starts_without_queues(bench: Bench) {
            assert!(bench.vhost().expect("a RabbitMQ engine has one").queues().is_empty());
        }
    }
}
