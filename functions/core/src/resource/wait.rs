//! Waiting for what a system finishes after it has answered.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::StepError;

/// How long a function waits for something that usually takes seconds, before it leaves the waiting to the state
/// machine's retry. Together with the calls around it this stays below every function's `Timeout`.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Asks `lacking` until it answers `None`. Each `Some` says what is still missing.
///
/// # Errors
/// `Transient` with the last answer when the patience is over; an error of the question itself at once.
pub(crate) async fn until_done<F, A>(doing: &str, mut lacking: F) -> Result<(), StepError>
where
    F: FnMut() -> A + Send,
    A: Future<Output = Result<Option<String>, StepError>> + Send,
{
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    while let Some(lack) = lacking().await? {
        if Instant::now() + pause > deadline {
            return Err(StepError::Transient(format!("{doing}: after {} s {lack}", PATIENCE.as_secs())));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_ends_the_waiting() {
        let mut answers = vec![None, Some("one left".to_owned()), Some("two left".to_owned())];
        until_done("counting", || {
            let answer = answers.pop().expect("asked once too often");
            async { Ok(answer) }
        })
        .await
        .expect("done");
        assert!(answers.is_empty());
    }

    #[tokio::test]
    async fn an_error_of_the_question_is_not_waited_for() {
        let error = until_done("asking", || async { Err(StepError::Denied("no".into())) }).await;
        assert_eq!(error, Err(StepError::Denied("no".into())));
    }
}
