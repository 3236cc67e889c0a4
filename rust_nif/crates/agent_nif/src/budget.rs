//! Leases of money between the provider calls and the ledgers.

use agent_providers::meter::{Account, Ledger, Refusal, Sum, Want};
use rustler::{Atom, Encoder, Env, LocalPid, OwnedEnv, ResourceArc, Term};

use crate::atoms;
use crate::providers::ProvidersHandle;
use crate::terms::{Map, int, string, text};

/// The process that takes wants to their ledgers.
struct Desk(LocalPid);

impl Ledger for Desk {
    fn want(&self, want: Want) -> bool {
        // Only calls that run on the runtime's own threads ask for money, so this is never a scheduler.
        let mut message = OwnedEnv::new();
        let sent = message.send_and_clear(&self.0, |env| {
            let needs: Vec<Term<'_>> = want.needs.iter().map(|n| (n.account.to_string(), n.limit, n.short).encode(env)).collect();
            let props = Map::new(env).put(atoms::tenant(), &want.tenant).put(atoms::id(), want.id).put(atoms::needs(), needs).end();
            (atoms::agent_native(), atoms::budget(), atoms::want(), props).encode(env)
        });
        sent.is_ok()
    }
}

/// The caller is told what calls want.
#[rustler::nif]
fn budget_attach(env: Env<'_>, handle: ResourceArc<ProvidersHandle>) -> Atom {
    handle.providers.meter().attach(std::sync::Arc::new(Desk(env.pid())));
    atoms::ok()
}

/// Lends committed amounts.
#[rustler::nif]
fn budget_grant(handle: ResourceArc<ProvidersHandle>, tenant: Term<'_>, grants: Vec<(Term<'_>, i64)>) -> Atom {
    let tenant = string(tenant).unwrap_or_default();
    for (account, pico) in grants {
        if let Some(account) = string(account).as_deref().and_then(Account::parse) {
            handle.providers.meter().grant(&tenant, &account, pico);
        }
    }
    atoms::ok()
}

/// Answers a want.
#[rustler::nif]
fn budget_answer(handle: ResourceArc<ProvidersHandle>, tenant: Term<'_>, id: u64, answer: Term<'_>) -> Atom {
    let tenant = string(tenant).unwrap_or_default();
    let meter = handle.providers.meter();
    if answer.is_map() {
        if let Some(account) = Account::parse(&text(answer, atoms::account())) {
            let refusal = Refusal {
                account,
                limit: int(answer, atoms::limit()),
                spent: int(answer, atoms::spent()),
                lent: int(answer, atoms::lent()),
                resets_ms: int(answer, atoms::resets_ms()),
            };
            meter.answer(&tenant, id, Some(Err(refusal)));
        }
    } else {
        meter.answer(&tenant, id, answer.decode::<Atom>().is_ok_and(|a| a == atoms::ok()).then_some(Ok(())));
    }
    atoms::ok()
}

/// Open leases of a tenant.
#[rustler::nif]
fn budget_sums<'a>(env: Env<'a>, handle: ResourceArc<ProvidersHandle>, tenant: Term<'a>, which: Atom) -> Term<'a> {
    let tenant = string(tenant).unwrap_or_default();
    let meter = handle.providers.meter();
    let sums = if which == atoms::all() { meter.lent(&tenant) } else { meter.sums(&tenant) };
    let term = |s: &Sum| (s.account.to_string(), s.open, s.reserved, s.idle).encode(env);
    sums.iter().map(term).collect::<Vec<_>>().encode(env)
}

/// Takes what is free out of a lease.
#[rustler::nif]
fn budget_take(handle: ResourceArc<ProvidersHandle>, tenant: Term<'_>, account: Term<'_>) -> i64 {
    let account = string(account).as_deref().and_then(Account::parse);
    account.map_or(0, |account| handle.providers.meter().take(&string(tenant).unwrap_or_default(), &account))
}
