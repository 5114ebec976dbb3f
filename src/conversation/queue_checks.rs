//! Questions of an ingress about queues of ServiceNow, and the answers of the workers. An ingress without a login for
//! ServiceNow cannot ask by itself.
//!
//! Guarantees: each question is claimed by one worker. Questions and answers are matched by a number, because the clocks
//! of two machines differ. A question without an answer is claimed again when it is asked again.
//! Not responsible for: the content of an answer (`app/availability.rs`).

use jiff::Timestamp;

use super::database::run;
use super::directory::Directory;
use super::{DirectoryError, statements};

/// The number of questions that a worker claims at once.
const AT_ONCE: i64 = 8;

impl Directory {
    /// Asks about a queue, and returns the number of the question. Forgets the queues that were last asked about before
    /// `forget`.
    pub async fn ask_about_queue(
        &self,
        queue: &str,
        at: Timestamp,
        forget: Timestamp,
    ) -> Result<i64, DirectoryError> {
        self.execute(statements::FORGET_QUEUE_CHECKS, [forget.into()]).await?;
        self.execute(statements::ASK_ABOUT_QUEUE, [queue.into(), at.into()]).await?;
        // Another ingress may have asked meanwhile. The answer to its question is the answer to this one, too.
        let row: (i64,) =
            run!(self, |pool| self.query_as(statements::QUEUE_QUESTION).bind(queue).fetch_one(pool))?;
        Ok(row.0)
    }

    /// Claims questions that no worker has claimed: the queue and the number of the question.
    pub async fn claim_queue_questions(&self) -> Result<Vec<(String, i64)>, DirectoryError> {
        let open: Vec<(String, i64)> = run!(self, |pool| {
            self.query_as(statements::OPEN_QUEUE_QUESTIONS).bind(AT_ONCE).fetch_all(pool)
        })?;
        let mut claimed = Vec::new();
        for (queue, number) in open {
            let values = [queue.as_str().into(), number.into()];
            if self.execute(statements::CLAIM_QUEUE_QUESTION, values).await? > 0 {
                claimed.push((queue, number));
            }
        }
        Ok(claimed)
    }

    /// Stores the answer to a question.
    pub async fn answer_queue_question(
        &self,
        queue: &str,
        number: i64,
        answer: &str,
    ) -> Result<(), DirectoryError> {
        let values = [queue.into(), number.into(), answer.into()];
        self.execute(statements::ANSWER_QUEUE_QUESTION, values).await.map(|_| ())
    }

    /// The answer to this question or to a later one.
    pub async fn queue_answer(&self, queue: &str, number: i64) -> Result<Option<String>, DirectoryError> {
        let row: Option<(Option<String>,)> = run!(self, |pool| {
            self.query_as(statements::QUEUE_ANSWER).bind(queue).bind(number).fetch_optional(pool)
        })?;
        Ok(row.and_then(|(answer,)| answer))
    }
}
