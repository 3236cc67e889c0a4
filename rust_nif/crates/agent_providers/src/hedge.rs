//! A second request where the first one is late: of two endpoints the one that shows content first serves, and the other one is dropped.

use std::pin::pin;
use std::time::Instant;

use agent_proto::agents::v1 as pb;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::attempts::{Attempt, told};
use crate::candidates::{Choice, Size};
use crate::flow::Flow;
use crate::{Caller, Providers, alias, price};

/// What each call adds to the second requests that may be made: one in twenty.
const EARNED: f64 = 0.05;
/// Most that are saved up, and how many there are at the start.
const MOST: f64 = 50.0;
const FIRST: f64 = 2.0;
/// The first request is late after so many times its 95th percentile.
const LATE: f64 = 1.2;
/// Pieces that wait for the caller.
const PIECES: usize = 16;

/// Second requests that may be made.
pub(crate) struct Hedges(Mutex<f64>);

impl Default for Hedges {
    fn default() -> Self {
        Self(Mutex::new(FIRST))
    }
}

impl Hedges {
    fn call(&self) {
        let mut saved = self.0.lock();
        *saved = (*saved + EARNED).min(MOST);
    }

    fn take(&self) -> bool {
        let mut saved = self.0.lock();
        let there = *saved >= 1.0;
        if there {
            *saved -= 1.0;
        }
        there
    }
}

/// The end of a race.
pub(crate) struct Raced {
    pub(crate) end: Attempt,
    /// Whether the second one gave it.
    pub(crate) second: bool,
    /// What became of the other one, where there was one, and its cost in pico-dollars.
    pub(crate) other: Option<(pb::CallAttempt, Option<i64>)>,
}

/// A call that may be raced.
#[derive(Clone, Copy)]
pub(crate) struct Race<'a> {
    pub(crate) request: &'a pb::ChatRequest,
    pub(crate) caller: &'a Caller,
    pub(crate) until: Instant,
    pub(crate) tried: &'a [String],
}

impl Providers {
    /// An attempt at `first`; if that is late, another one at `second` beside it. The loser's request is aborted; what it has cost is not told
    /// by anybody, so it is counted as what such a call costs by the sizes that are expected, and a budget keeps what was set aside for it.
    pub(crate) async fn raced(&self, first: &Choice, second: &Choice, race: Race<'_>, flow: Option<&Flow<'_>>) -> Raced {
        let Race { request, caller, until, tried } = race;
        self.hedges.call();
        let Some(usual) = first.health.p95(flow.is_some()) else {
            let end = self.attempt(first, request, caller, until, flow, tried).await;
            return Raced { end, second: false, other: None };
        };
        let ((to_one, mut from_one), (to_two, mut from_two)) = (mpsc::channel(PIECES), mpsc::channel(PIECES));
        let flows = [Flow::new(&to_one), Flow::new(&to_two)];
        let own = |n: usize| flow.map(|_| &flows[n]);
        let mut one = pin!(self.attempt(first, request, caller, until, own(0), tried));
        let mut two = pin!(self.attempt(second, request, caller, until, own(1), &[]));
        let late = tokio::time::sleep(usual.mul_f64(LATE));
        let mut late = pin!(late);
        // Which run, which has shown something, and how one has ended that the other outlives.
        let (mut begun, mut waits, mut winner) = (false, true, None::<usize>);
        let mut ended: [Option<Attempt>; 2] = [None, None];
        loop {
            let runs = |n: usize, ended: &[Option<Attempt>; 2]| ended[n].is_none() && winner.is_none_or(|w| w == n);
            let (one_runs, two_runs) = (runs(0, &ended), begun && runs(1, &ended));
            tokio::select! {
                biased;
                Some(piece) = from_one.recv(), if winner != Some(1) => {
                    winner = winner.or_else(|| content(&piece).then_some(0));
                    pass(flow, piece).await;
                }
                Some(piece) = from_two.recv(), if winner != Some(0) => {
                    winner = winner.or_else(|| content(&piece).then_some(1));
                    pass(flow, piece).await;
                }
                end = &mut one, if one_runs => ended[0] = Some(end),
                end = &mut two, if two_runs => ended[1] = Some(end),
                () = &mut late, if waits && winner.is_none() && ended[0].is_none() => {
                    waits = false;
                    begun = self.hedges.take() && self.retries.take(&caller.tenant);
                }
            }
            let good = |n: usize| ended[n].as_ref().is_some_and(|e| e.result.is_ok());
            let over = match winner {
                Some(n) => ended[n].is_some().then_some(n),
                None if good(0) => Some(0),
                None if good(1) => Some(1),
                // Both have failed, or the only one.
                None if ended[0].is_some() && (!begun || ended[1].is_some()) => Some(usize::from(begun)),
                None => None,
            };
            let Some(n) = over else { continue };
            let Some(end) = ended[n].take() else { continue };
            // Nothing of the winner is left behind.
            let rest = if n == 0 { &mut from_one } else { &mut from_two };
            while let Ok(piece) = rest.try_recv() {
                pass(flow, piece).await;
            }
            let (loser, hedge) = if n == 0 { (second, true) } else { (first, false) };
            let other = begun.then(|| match ended[1 - n].take() {
                Some(lost) => (pb::CallAttempt { hedge, ..told(loser, &lost) }, lost.pico),
                None => self.lost(loser, request, caller, hedge),
            });
            return Raced { end, second: n == 1, other };
        }
    }

    /// An attempt that was dropped.
    fn lost(&self, choice: &Choice, request: &pb::ChatRequest, caller: &Caller, hedge: bool) -> (pb::CallAttempt, Option<i64>) {
        let size = Size::of(request);
        let prices = self.money.prices(alias(&request.model), &choice.provider.config, &choice.model);
        let pico = prices.at_most(size.input, size.output);
        self.charge(&choice.provider, caller, pico);
        let told = pb::CallAttempt {
            provider: choice.provider.name.clone(),
            model: choice.model.clone(),
            outcome: "hedge_lost".into(),
            cost_micros: pico.map(price::micros),
            hedge,
            ..Default::default()
        };
        (told, pico)
    }
}

fn content(piece: &pb::StreamChatResponse) -> bool {
    use pb::stream_chat_response::Piece;
    matches!(piece.piece, Some(Piece::TextDelta(_) | Piece::ReasoningDelta(_) | Piece::ToolCallDelta(_)))
}

async fn pass(flow: Option<&Flow<'_>>, piece: pb::StreamChatResponse) {
    if let Some(flow) = flow {
        let _ = flow.send(piece).await;
    }
}
