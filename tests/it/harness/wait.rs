//! The functions to wait: for a condition, never for a fixed time.
//!
//! The condition is checked repeatedly, so no signal can be missed. After the timeout the panic shows the last observed
//! state.

use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(20);

/// Checks `condition` until it returns `Ok`. After `timeout` it panics with the last `Err` (the observed state).
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    timeout: Duration,
    condition: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    watch(what, timeout, condition, caller)
}

async fn watch<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
    caller: &'static std::panic::Location<'static>,
) -> T {
    let started = Instant::now();
    let mut status = "nothing".to_owned();
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        match tokio::time::timeout(left.max(TICK), condition()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(seen)) => status = seen,
            Err(_) => status.push_str("; after that the condition itself did not answer in time"),
        }
        assert!(
            started.elapsed() < timeout,
            "{caller}: gave up after {timeout:?} waiting for: {what}\nlast seen: {status}"
        );
        tokio::time::sleep(TICK).await;
    }
}

/// Like [`eventually`], for code without a runtime, such as a constructor.
pub(crate) fn eventually_blocking<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(status) => {
                assert!(
                    started.elapsed() < timeout,
                    "gave up after {timeout:?} waiting for: {what}\nlast seen: {status}"
                );
            }
        }
        std::thread::sleep(TICK);
    }
}

/// Lets time pass as part of a simulation (a slow connection, a person who thinks), not to wait for an event.
pub(crate) async fn let_pass(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

#[tokio::test]
async fn returns_what_the_condition_finds() {
    let mut asked = 0;
    let found = eventually("the third question", Duration::from_secs(5), async || {
        asked += 1;
        if asked == 3 { Ok("here") } else { Err(format!("asked {asked} times")) }
    })
    .await;
    assert_eq!((found, asked), ("here", 3));
}

#[tokio::test]
#[should_panic(expected = "last seen: 7 of 8 delivered")]
async fn panics_with_the_last_status() {
    eventually::<()>("all delivered", Duration::from_millis(60), async || Err("7 of 8 delivered".to_owned()))
        .await;
}

#[tokio::test]
#[should_panic(expected = "did not answer in time")]
async fn a_condition_that_hangs_is_given_up_too() {
    eventually::<()>("an answer", Duration::from_millis(60), async || std::future::pending().await).await;
}

/// Lets a random time pass before a kill, not to wait for an event.
pub(crate) fn let_pass_blocking(moment: Duration) {
    std::thread::sleep(moment);
}
