//! Names that may be used once, and requests in flight: the same request again joins the first instead of failing
//! with "name is reserved" (CRI-RUN-06 to CRI-RUN-10, CRI-CC-02, CRI-GEN-12).

use crate::error::{Error, Result};
use crate::telemetry::spans;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tonic::Code;

type Outcome = Option<Result<String>>;

#[derive(Debug)]
enum Name {
    InFlight(watch::Receiver<Outcome>),
    /// The id of the object that holds it.
    Taken(String),
}

/// Whether a request may get what another one makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    Welcome,
    Refused,
}

/// All names of one kind of object.
#[derive(Debug, Default, Clone)]
pub(crate) struct Names {
    names: Arc<Mutex<HashMap<String, Name>>>,
}

impl Names {
    /// Runs `work`, which makes the object called `name` and answers its id, once: a second call in the meantime gets the same
    /// answer. The work goes on when its callers go away, so that nothing is left half-made or hidden.
    ///
    /// # Errors
    /// AlreadyExists when the object exists; otherwise what `work` answered, and the name is free again.
    pub(crate) async fn once<F>(&self, name: &str, work: F) -> Result<String>
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        self.enter(name, Company::Welcome, work).await
    }

    /// The same for a caller that undoes what it has got: it must be nobody else's.
    ///
    /// # Errors
    /// Aborted while another one is at it.
    pub(crate) async fn enter<F>(&self, name: &str, company: Company, work: F) -> Result<String>
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        let mut outcome = match self.begin(name)? {
            Begin::Joined(_) if company == Company::Refused => {
                let text = format!("{name:?} is being made by another request: try again when that is done");
                return Err(Error::new(Code::Aborted, text));
            }
            Begin::Joined(outcome) => outcome,
            Begin::First(outcome, announce) => {
                let (names, name) = (self.clone(), name.to_owned());
                spans::spawn(async move {
                    // A panic in `work` must not keep the name for ever: it becomes an error like others. (Where panics
                    // unwind: release builds abort, and recovery clears up.)
                    let result =
                        spans::spawn(work).await.unwrap_or_else(|e| Err(Error::internal(e.to_string())));
                    names.settle(&name, &result);
                    announce.send_replace(Some(result));
                });
                outcome
            }
        };
        let settled = outcome.wait_for(Option::is_some).await;
        let answer = settled.ok().and_then(|outcome| outcome.clone());
        answer.unwrap_or_else(|| Err(Error::internal("the request was dropped at shutdown")))
    }

    /// Marks a name as taken without work: at recovery.
    pub(crate) fn take(&self, name: &str, id: &str) {
        self.lock().insert(name.to_owned(), Name::Taken(id.to_owned()));
    }

    /// Frees the name if `id` holds it; last act of a removal (CRI-PREM-04).
    pub(crate) fn free(&self, name: &str, id: &str) {
        let mut names = self.lock();
        if matches!(names.get(name), Some(Name::Taken(holder)) if holder == id) {
            names.remove(name);
        }
    }

    fn begin(&self, name: &str) -> Result<Begin> {
        let mut names = self.lock();
        match names.get(name) {
            Some(Name::Taken(id)) => {
                // The wording is what older kubelets look for (CRI-RUN-07).
                let text = format!(
                    "failed to reserve sandbox name: name {name:?} is reserved for {id:?}; remove that first"
                );
                Err(Error::new(Code::AlreadyExists, text))
            }
            Some(Name::InFlight(outcome)) => Ok(Begin::Joined(outcome.clone())),
            None => {
                let (announce, outcome) = watch::channel(None);
                names.insert(name.to_owned(), Name::InFlight(outcome.clone()));
                Ok(Begin::First(outcome, announce))
            }
        }
    }

    fn settle(&self, name: &str, result: &Result<String>) {
        let mut names = self.lock();
        match result {
            Ok(id) => names.insert(name.to_owned(), Name::Taken(id.clone())),
            Err(_) => names.remove(name),
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Name>> {
        // Every critical section is a single map operation: a poisoned map is whole.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Begin {
    First(watch::Receiver<Outcome>, watch::Sender<Outcome>),
    Joined(watch::Receiver<Outcome>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    /// CRI-RUN-09, CRI-GEN-12.
    #[tokio::test]
    async fn a_retry_joins_the_call_in_flight_even_when_the_first_caller_left() {
        let names = Names::default();
        let runs = Arc::new(AtomicU32::new(0));
        let work = |runs: &Arc<AtomicU32>| {
            let runs = Arc::clone(runs);
            async move {
                runs.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok("id-1".to_owned())
            }
        };
        let left = tokio::time::timeout(Duration::from_millis(5), names.once("n", work(&runs))).await;
        assert!(left.is_err(), "the first caller gives up");
        let alone = names.enter("n", Company::Refused, work(&runs)).await.expect_err("in flight");
        assert_eq!(alone.code(), Code::Aborted);
        assert_eq!(names.once("n", work(&runs)).await, Ok("id-1".into()));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let again = names.once("n", work(&runs)).await.expect_err("taken");
        assert_eq!(again.code(), Code::AlreadyExists);
        names.free("n", "other");
        assert!(names.once("n", work(&runs)).await.is_err(), "only its holder frees it");
        names.free("n", "id-1");
        assert!(names.once("n", work(&runs)).await.is_ok());
    }

    /// CRI-CC-03.
    #[tokio::test]
    async fn a_failure_or_panic_frees_the_name() {
        let names = Names::default();
        assert!(names.once("n", async { Err(Error::internal("no")) }).await.is_err());
        assert!(names.once("n", async { panic!("bug") }).await.is_err());
        assert!(names.once("n", async { Ok("id".into()) }).await.is_ok());
    }
}
