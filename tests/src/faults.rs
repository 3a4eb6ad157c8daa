//! Faults from outside: what becomes of calls on their way, told apart by their system, their function and what they carry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tenantry_core::tenant::TenantId;
use tenantry_local::proxy::{Call, System, Tap, Verdict};
use tokio::time::sleep;

use crate::wire;

/// Bytes that are kept of a call: what it names is at its beginning, and what is uploaded is megabytes.
const MOST_BYTES: usize = 1 << 20;

/// Looks at every call of the functions.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<Arc<Rule>>>,
    calls: Mutex<Vec<Seen>>,
}

/// A call that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The function.
    pub function: String,
    /// What was called.
    pub system: System,
    /// Method and target, and for AWS's JSON and query protocols the operation.
    pub what: String,
    /// What IAM asks for, of a call of AWS's.
    pub actions: Vec<String>,
    /// All that it held.
    text: Vec<u8>,
}

/// Which calls a fault hits.
#[derive(Debug, Clone)]
pub struct Target {
    /// What is called.
    pub system: System,
    /// The function that calls; any where empty. The Kubernetes client does not say.
    pub function: &'static str,
    /// What the call holds: method and target, or the operation.
    pub holds: &'static str,
}

/// A fault.
pub struct Rule {
    target: Target,
    marks: Vec<Vec<u8>>,
    verdict: Verdict,
    left: AtomicI64,
    hits: AtomicUsize,
}

/// A fault that is in force until this is dropped.
pub struct Injected {
    faults: Arc<Faults>,
    rule: Arc<Rule>,
}

impl Faults {
    /// Puts a fault into force for calls that carry one of the marks, so many times.
    pub fn inject(self: &Arc<Self>, target: Target, marks: Vec<Vec<u8>>, verdict: Verdict, times: i64) -> Injected {
        let rule = Arc::new(Rule { target, marks, verdict, left: times.into(), hits: AtomicUsize::new(0) });
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule.clone());
        Injected { faults: self.clone(), rule }
    }

    /// The actions that IAM asked each function for, so far.
    pub fn asked(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut asked = BTreeMap::<_, BTreeSet<_>>::new();
        for call in self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if call.system == System::Aws && !call.actions.is_empty() {
                asked.entry(call.function.clone()).or_default().extend(call.actions.iter().cloned());
            }
        }
        asked
    }

    /// What was called since with one of the marks, in order.
    pub fn calls_with(&self, marks: &[Vec<u8>]) -> Vec<Seen> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| marks.iter().any(|mark| holds(&call.text, mark))).cloned().collect()
    }
}

impl Seen {
    /// Whether it only looks.
    pub fn reads(&self) -> bool {
        const LOOKS: &[&str] = &["Get", "List", "Describe", "Query", "BatchGet"];
        let looks = |action: &String| {
            LOOKS.iter().any(|look| action.split(':').nth(1).is_some_and(|operation| operation.starts_with(look)))
        };
        match self.system {
            System::Postgres | System::Dedicated => self.what.starts_with("SQL SELECT"),
            System::Aws => self.actions.iter().all(looks),
            System::Kubernetes | System::Stripe => self.what.starts_with("GET "),
        }
    }
}

impl Injected {
    /// How often it was met.
    pub fn hits(&self) -> usize {
        self.rule.hits.load(Ordering::SeqCst)
    }

    /// Waits until it is met.
    pub async fn until_hit(&self, deadline: Instant) -> Result<()> {
        while self.hits() == 0 {
            ensure!(Instant::now() < deadline, "{:?} is not called", self.rule.target);
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        let mut rules = self.faults.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.retain(|rule| !Arc::ptr_eq(rule, &self.rule));
    }
}

/// What a call that concerns a tenant carries: its id as text or as PostgreSQL takes it, or its slug in one of its forms.
pub fn marks(id: TenantId, slug: &str) -> Vec<Vec<u8>> {
    vec![
        id.to_string().into_bytes(),
        id.0.as_bytes().to_vec(),
        slug.as_bytes().to_vec(),
        slug.replace('-', "_").into_bytes(),
    ]
}

impl Tap for Faults {
    fn judge(&self, call: &Call) -> Verdict {
        let operation = call.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        let mut text = format!("{} {} {operation}\n", call.method, call.target).into_bytes();
        text.extend_from_slice(&call.body[..call.body.len().min(MOST_BYTES)]);
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let met = rules.iter().find(|rule| {
            let Target { system, function, holds: wanted } = &rule.target;
            *system == call.system
                && (function.is_empty() || call.function.is_empty() || *function == call.function)
                && holds(&text, wanted.as_bytes())
                && rule.marks.iter().any(|mark| holds(&text, mark))
                && rule.left.fetch_sub(1, Ordering::SeqCst) > 0
        });
        let verdict = met.map_or(Verdict::Pass, |rule| {
            rule.hits.fetch_add(1, Ordering::SeqCst);
            rule.verdict
        });
        drop(rules);
        let actions = if call.system == System::Aws { wire::actions(call) } else { Vec::new() };
        let what = format!("{} {} {}", call.method, call.target, actions.join(" "));
        let seen = Seen { function: call.function.clone(), system: call.system, what, actions, text };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        verdict
    }
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
