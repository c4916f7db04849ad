//! The pause after a push that the host did not take: twice as long each time, and never shorter than it asks for.

use std::time::Duration;

use tokio::time::Instant;

use crate::{error::chain, source::git::GitError};

const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_mins(1);

/// When the repo may be pushed to again.
#[derive(Debug, Default)]
pub(super) struct PushPause(Option<Failed>);

#[derive(Debug)]
struct Failed {
    until: Instant,
    failures: u32,
    problem: String,
}

impl PushPause {
    /// Why nothing may be pushed now. The same words until the next try, so that they are told once.
    pub(super) fn problem(&self) -> Option<String> {
        let failed = self.0.as_ref()?;
        (failed.until > Instant::now()).then(|| failed.problem.clone())
    }

    /// When the pause ends.
    pub(super) fn end(&self) -> Option<Instant> {
        let until = self.0.as_ref()?.until;
        (until > Instant::now()).then_some(until)
    }

    /// Notes a push that failed, and returns why.
    pub(super) fn failed(&mut self, error: &GitError) -> String {
        let failures = self.0.as_ref().map_or(0, |failed| failed.failures);
        let asked = match error {
            GitError::Throttled { retry_after, .. } => retry_after.unwrap_or(LONGEST),
            _ => Duration::ZERO,
        };
        let pause = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
        let problem = chain(error);
        self.0 = Some(Failed {
            until: Instant::now() + pause.max(asked),
            failures: failures + 1,
            problem: problem.clone(),
        });
        problem
    }

    /// Notes a push that worked.
    pub(super) fn worked(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttled(retry_after: Option<Duration>) -> GitError {
        GitError::Throttled {
            operation: "push".to_owned(),
            retry_after,
            message: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_doubles_and_lasts_as_long_as_the_host_asks() {
        let mut pause = PushPause::default();
        assert_eq!((pause.problem(), pause.end()), (None, None));
        let lasts = |pause: &PushPause| pause.end().unwrap().duration_since(Instant::now());
        pause.failed(&GitError::Cut);
        assert_eq!(lasts(&pause), FIRST);
        pause.failed(&GitError::Cut);
        assert_eq!(lasts(&pause), FIRST * 2);
        let problem = pause.failed(&throttled(Some(Duration::from_secs(90))));
        assert_eq!(lasts(&pause), Duration::from_secs(90));
        assert_eq!(pause.problem(), Some(problem));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!((pause.problem(), pause.end()), (None, None));
        pause.failed(&GitError::Cut);
        assert_eq!(lasts(&pause), FIRST * 8);
        pause.worked();
        pause.failed(&GitError::Cut);
        assert_eq!(lasts(&pause), FIRST);
    }
}
