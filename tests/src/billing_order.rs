//! A thousand events about several tenants, of several types, duplicated and shuffled at random, handled at once and while
//! more happens: the tenants end where billing is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tenant_gate::Verdict;
use tenantry_core::billing_event::STRIPE_TYPES;
use tenantry_core::step::Step;
use tenantry_core::steps::follow_billing::FollowBilling;
use tenantry_core::tenant::{Plan, Status};
use tenantry_local::progress::print;
use tokio::time::sleep;

use crate::billing_events::{Subscriber, becomes, changed, happened, put_sample, standing, subscriber, without_stripe};
use crate::gate::gate;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] =
    &[("a_thousand_events_shuffled_and_duplicated_end_where_billing_is", |world| Box::pin(shuffled(world)))];

/// Events in all, duplicates counted.
const EVENTS: usize = 1000;
/// One change in so many is told over the bus as well.
const OVER_THE_BUS: usize = 20;
/// Tenants of each kind: those whose state is read from Stripe, and those whose newest event is the state.
const TENANTS: usize = 4;
/// Events handled at once.
const AT_ONCE: usize = 8;
/// What subscriptions become; the plan has no grace.
const STATUSES: &[(&str, Status)] =
    &[("active", Status::Active), ("past_due", Status::Suspended), ("unpaid", Status::Suspended)];

/// An event that waits for whoever comes.
struct Told {
    of_stripe: bool,
    request: Value,
}

/// A tenant, and what billing last said of it.
struct Billed {
    subscriber: Subscriber,
    of_stripe: bool,
    sequence: i64,
    expected: Status,
}

async fn shuffled(world: &World) -> Result<()> {
    let seed: u64 = rand::random();
    print(&format!("billing_order: seed {seed}"));
    Box::pin(run(world, StdRng::seed_from_u64(seed))).await.with_context(|| format!("with seed {seed}"))
}

async fn run(world: &World, mut random: StdRng) -> Result<()> {
    let mut tenants = Vec::new();
    for of_stripe in [true, false] {
        for _ in 0..TENANTS {
            let subscriber =
                if of_stripe { subscriber(world, Plan::Starter).await? } else { without_stripe(world).await? };
            tenants.push(Billed { subscriber, of_stripe, sequence: 0, expected: Status::Active });
        }
    }
    let (waiting, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let handlers: Vec<u64> = (0..AT_ONCE).map(|_| random.random()).collect();
    let handlers = handlers.into_iter().map(|seed| handle(world, &waiting, &over, StdRng::seed_from_u64(seed)));
    let happening = async {
        let on_the_bus = happen(world, &mut tenants, &waiting, &mut random).await;
        over.store(true, Ordering::SeqCst);
        on_the_bus
    };
    let (on_the_bus, handled) = tokio::join!(happening, try_join_all(handlers));
    let handled: usize = handled?.into_iter().sum();
    ensure!(handled >= EVENTS, "{handled} events were handled");
    for (status, input, said) in world.followed(&on_the_bus?).await? {
        ensure!(status == ExecutionStatus::Succeeded, "{input}: {said}");
    }
    let gate = gate(world)?;
    for Billed { subscriber: Subscriber { tenant, account }, expected, .. } in &tenants {
        let found = standing(world, tenant).await?;
        let reasons: &[&str] = if *expected == Status::Active { &[] } else { &["payment_failure"] };
        ensure!(found.0 == *expected && found.1 == reasons, "{account:?} is {expected} at billing, and {found:?} here");
        let admitted = matches!(gate.decide(tenant.slug.as_str(), 1).await, Verdict::Admitted(..));
        ensure!(admitted == (*expected == Status::Active), "the gate has another state than billing: {account:?}");
    }
    Ok(())
}

/// Changes subscriptions at billing, and tells of each change once to three times. Returns the ids of what it told over the bus.
async fn happen(
    world: &World,
    tenants: &mut [Billed],
    waiting: &Mutex<Vec<Told>>,
    random: &mut StdRng,
) -> Result<BTreeSet<String>> {
    let (mut told, mut changes, mut on_the_bus) = (0, 0, BTreeSet::new());
    while told < EVENTS {
        let billed = &mut tenants[random.random_range(0..2 * TENANTS)];
        let (status, expected) = STATUSES[random.random_range(0..STATUSES.len())];
        let account = &billed.subscriber.account;
        billed.expected = expected;
        let request = if billed.of_stripe {
            becomes(world, account, json!({"status": status})).await?;
            // Whichever type: all that it says is that something happened.
            let kind = STRIPE_TYPES[random.random_range(0..STRIPE_TYPES.len())];
            if changes % OVER_THE_BUS == 0 {
                on_the_bus.insert(put_sample(world, kind, account).await?);
            }
            happened(kind, account)
        } else {
            billed.sequence += random.random_range(1..4);
            changed(account, billed.sequence, status)
        };
        changes += 1;
        let copies = random.random_range(1..=3);
        told += copies;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend((0..copies).map(|_| Told { of_stripe: billed.of_stripe, request: request.clone() }));
    }
    Ok(on_the_bus)
}

/// Takes events at random until none is left and none will come; what may pass is tried again, as the machine does.
async fn handle(world: &World, waiting: &Mutex<Vec<Told>>, over: &AtomicBool, mut random: StdRng) -> Result<usize> {
    let with_stripe = FollowBilling::from_env(&world.env)?;
    let without_stripe = FollowBilling::from_env(&world.env.clone().with("STRIPE_SECRET", ""))?;
    let mut handled = 0;
    loop {
        let last = over.load(Ordering::SeqCst);
        let next = {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let some = (!waiting.is_empty()).then(|| random.random_range(0..waiting.len()));
            some.map(|index| waiting.swap_remove(index))
        };
        let Some(Told { of_stripe, request }) = next else {
            if last {
                return Ok(handled);
            }
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        let step = if of_stripe { &with_stripe } else { &without_stripe };
        let call = json!({"request": request, "execution": "manual:test"});
        while let Err(error) = step.run("follow-billing", &call).await {
            ensure!(error.is_transient(), "{request}: {error}");
        }
        handled += 1;
    }
}
