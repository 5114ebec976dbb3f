//! Tests that SIGTERM ends a process within `drain` with exit code 0, and that the next process delivers its messages
//! in order.

use std::time::Duration;

use causeway::sandbox::{FaultRule, Operation, Side};

use super::harness::load::Load;
use super::harness::relay::Plan;

const LINES: usize = 6;
/// `drain`, with a margin for a busy machine.
const IN_TIME: Duration = Duration::from_secs(35);

on_every_engine! {
    async fn the_next_process_delivers_messages_of_a_stopped_process(bench: Bench) {
        let mut relay = Plan::on(&bench).start().await;
        let slow = FaultRule::new(Side::Xo).operation(Operation::Callback).delay(Duration::from_millis(60));
        let slow = relay.sandbox.script().fail(slow);
        let load = Load::start(&relay, LINES);
        for _ in 0..2 {
            load.takes(60).await;
            let process = &mut relay.processes[0];
            process.running.sigterm();
            let ended = process.running.exit(IN_TIME).await;
            assert_eq!(ended.code(), Some(0), "{}", process.running.stderr());
            // The restart is immediate, so a leftover of the first process must not block it.
            process.restart();
        }
        load.takes(60).await;
        assert!(relay.sandbox.script().remove(slow));
        load.all_arrive(&relay.sandbox).await;
        assert_eq!(relay.stop().await, [Some(0)]);
    }

    async fn a_stop_does_not_wait_for_a_destination_that_is_down(bench: Bench) {
        let mut relay = Plan::on(&bench).start().await;
        let down = relay.sandbox.script().fail(FaultRule::new(Side::Xo).status(503));
        let load = Load::start(&relay, LINES);
        load.takes(60).await;
        let process = &mut relay.processes[0];
        process.running.sigterm();
        assert_eq!(process.running.exit(IN_TIME).await.code(), Some(0), "{}", process.running.stderr());
        process.restart();
        assert!(relay.sandbox.script().remove(down));
        load.takes(60).await;
        load.all_arrive(&relay.sandbox).await;
    }

    async fn a_second_signal_ends_the_process_at_once(bench: Bench) {
        let mut relay = Plan::on(&bench).set("delivery.xo.timeout", "14s").start().await;
        let hangs = FaultRule::new(Side::Xo).operation(Operation::Callback).delay(Duration::from_secs(60));
        let hangs = relay.sandbox.script().fail(hangs);
        let load = Load::start(&relay, LINES);
        load.takes(LINES).await;
        let process = &mut relay.processes[0];
        process.running.sigterm();
        process.running.line("a second signal ends it at once", IN_TIME).await;
        process.running.sigint();
        let ended = process.running.exit(Duration::from_secs(8)).await;
        assert_eq!(ended.code(), Some(130), "{}", process.running.stderr());
        assert!(relay.sandbox.script().remove(hangs));
        relay.processes[0].restart();
        load.all_arrive(&relay.sandbox).await;
    }
}
