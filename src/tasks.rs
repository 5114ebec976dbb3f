//! The only caller of `tokio::spawn`: every task has a name, observes the cancellation and is joined.
//!
//! Guarantees: if a task ends with an error or a panic before cancellation, all tasks are cancelled, and [`Tasks::finish`]
//! names the failed task. Not responsible for: how a task drains.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// The cancellation of all tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop {
    flag: watch::Sender<bool>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { flag: watch::Sender::new(false) }
    }
}

impl Stop {
    /// Cancels all tasks.
    pub fn ask(&self) {
        self.flag.send_replace(true);
    }

    /// Whether cancellation was requested.
    pub fn asked(&self) -> bool {
        *self.flag.borrow()
    }

    /// Waits for cancellation. Cancel-safe.
    pub async fn wait(&self) {
        let mut receiver = self.flag.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = receiver.wait_for(|asked| *asked).await;
    }
}

/// Why a task ended before cancellation.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    /// The task returned an error.
    #[error("{name} failed: {reason}")]
    Failed {
        /// The name of the task.
        name: &'static str,
        /// The text of the error.
        reason: String,
    },
    /// The task panicked. The text of the panic is not shown, since it might contain anything.
    #[error("a task panicked")]
    Panicked,
    /// A task did not end within the drain time.
    #[error("tasks did not end in time and were aborted")]
    Late,
}

/// A set of named tasks with one stop token.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<(&'static str, Result<(), String>)>,
    stop: Stop,
}

impl Tasks {
    /// Tasks that observe `stop`.
    pub fn new(stop: Stop) -> Self {
        Self { set: JoinSet::new(), stop }
    }

    /// Starts a task that runs until its work is done or until it observes the cancellation.
    pub fn start<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let task = async move {
            let ended = task.await.map_err(|error| error.to_string());
            tracing::debug!(task = name, "ended");
            (name, ended)
        };
        #[cfg(test)]
        let task = crate::clock::hands::handed_down(task);
        self.set.spawn(task);
    }

    /// Runs until cancellation or until a task fails, then gives all tasks `drain` to end.
    pub async fn finish(mut self, drain: Duration) -> Result<(), TaskFailure> {
        let stop = self.stop.clone();
        let mut first = tokio::select! {
            () = stop.wait() => None,
            failure = self.first_failure() => failure,
        };
        self.stop.ask();
        let rest = tokio::time::timeout(drain, self.first_failure()).await;
        match rest {
            Ok(later) => first = first.or(later),
            Err(_) => {
                self.set.abort_all();
                first = first.or(Some(TaskFailure::Late));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The first failure, or `None` if every task ended well.
    async fn first_failure(&mut self) -> Option<TaskFailure> {
        while let Some(joined) = self.set.join_next().await {
            match joined {
                Ok((_, Ok(()))) => {}
                Ok((name, Err(reason))) => return Some(TaskFailure::Failed { name, reason }),
                Err(join) if join.is_panic() => return Some(TaskFailure::Panicked),
                Err(_) => {}
            }
        }
        None
    }
}

/// Starts a task whose owner joins or aborts it through the handle.
#[expect(clippy::disallowed_methods, reason = "this is the only caller of tokio::spawn")]
pub fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[cfg(test)]
    let task = crate::clock::hands::handed_down(task);
    tokio::spawn(task)
}

/// Runs in the caller's task. If the caller is dropped before the end, the work continues in a task of its own.
pub fn to_the_end<F>(work: F) -> ToTheEnd<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    ToTheEnd(Some(Box::pin(work)))
}

/// See [`to_the_end`].
#[derive(Debug)]
pub struct ToTheEnd<F>(Option<Pin<Box<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static;

impl<F> Future for ToTheEnd<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F> Drop for ToTheEnd<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn drop(&mut self) {
        if let Some(work) = self.0.take()
            && !std::thread::panicking()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_still_ends() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut work = Box::pin(to_the_end(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            sender.send("done").unwrap();
        }));
        assert!(futures_util::poll!(work.as_mut()).is_pending());
        drop(work);
        assert_eq!(receiver.await, Ok("done"));
        assert_eq!(to_the_end(async { 7 }).await, 7);
    }

    #[tokio::test]
    async fn a_failing_task_stops_the_others() {
        let stop = Stop::default();
        let mut tasks = Tasks::new(stop.clone());
        let heard = stop.clone();
        tasks.start("patient", async move {
            heard.wait().await;
            Ok::<(), String>(())
        });
        tasks.start("broken", async { Err("no such thing") });
        let failure = tasks.finish(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failure.to_string(), "broken failed: no such thing");
        assert!(stop.asked());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_stop_is_aborted() {
        let stop = Stop::default();
        let mut tasks = Tasks::new(stop.clone());
        tasks.start("deaf", async {
            std::future::pending::<()>().await;
            Ok::<(), String>(())
        });
        stop.ask();
        assert!(matches!(tasks.finish(Duration::from_secs(25)).await, Err(TaskFailure::Late)));
    }
}
