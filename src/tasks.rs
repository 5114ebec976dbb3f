//! The only caller of `tokio::spawn`: every task has a name, observes the cancellation and is joined.
//!
//! Guarantees: if a task ends with an error or a panic before cancellation, all tasks are cancelled, and [`TaskSet::finish`]
//! names the failed task. Not responsible for: how a task drains.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// The cancellation of all tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CancellationToken {
    flag: watch::Sender<bool>,
}

impl Default for CancellationToken {
    fn default() -> Self {
        Self { flag: watch::Sender::new(false) }
    }
}

impl CancellationToken {
    /// Cancels all tasks.
    pub fn cancel(&self) {
        self.flag.send_replace(true);
    }

    /// Whether cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        *self.flag.borrow()
    }

    /// Waits for cancellation. Cancel-safe.
    pub async fn cancelled(&self) {
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
pub struct TaskSet {
    set: JoinSet<(&'static str, Result<(), String>)>,
    stop: CancellationToken,
}

impl TaskSet {
    /// Tasks that observe `stop`.
    pub fn new(stop: CancellationToken) -> Self {
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
            () = stop.cancelled() => None,
            failure = self.first_failure() => failure,
        };
        self.stop.cancel();
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
pub fn run_to_completion<F>(work: F) -> RunToCompletion<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    RunToCompletion(Some(Box::pin(work)))
}

/// See [`run_to_completion`].
#[derive(Debug)]
pub struct RunToCompletion<F>(Option<Pin<Box<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static;

impl<F> Future for RunToCompletion<F>
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

impl<F> Drop for RunToCompletion<F>
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
    async fn a_task_without_a_waiting_caller_still_ends() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut work = Box::pin(run_to_completion(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            sender.send("done").unwrap();
        }));
        assert!(futures_util::poll!(work.as_mut()).is_pending());
        drop(work);
        assert_eq!(receiver.await, Ok("done"));
        assert_eq!(run_to_completion(async { 7 }).await, 7);
    }

    #[tokio::test]
    async fn a_failing_task_stops_the_others() {
        let stop = CancellationToken::default();
        let mut tasks = TaskSet::new(stop.clone());
        let heard = stop.clone();
        tasks.start("patient", async move {
            heard.cancelled().await;
            Ok::<(), String>(())
        });
        tasks.start("broken", async { Err("no such thing") });
        let failure = tasks.finish(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failure.to_string(), "broken failed: no such thing");
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_aborted() {
        let stop = CancellationToken::default();
        let mut tasks = TaskSet::new(stop.clone());
        tasks.start("deaf", async {
            std::future::pending::<()>().await;
            Ok::<(), String>(())
        });
        stop.cancel();
        assert!(matches!(tasks.finish(Duration::from_secs(25)).await, Err(TaskFailure::Late)));
    }
}
