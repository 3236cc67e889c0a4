//! In which order tasks are listed, and where a page begins: by index, so that a page costs what it holds.

use agent_core::header::timestamp_ms;
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;

/// Length of a task's id.
const ID: usize = 36;

/// What tasks are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By the time of the end, so that tasks that have not ended are left out; else by the time of the creation, which ids begin with.
    pub by_end: bool,
    /// The last one first.
    pub newest_first: bool,
}

/// A place in this order: 0 and an id, or the end in ms and an id; before the first one the id is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// End in ms.
    pub end_ms: i64,
    /// Task.
    pub id: String,
}

impl Place {
    /// For clients, who give it back.
    pub(crate) fn token(&self) -> String {
        if self.end_ms == 0 { self.id.clone() } else { format!("{}.{}", self.end_ms, self.id) }
    }
}

impl Order {
    /// An empty one is the newest first.
    pub fn parse(order_by: &str) -> Result<Self, AgentError> {
        let (by_end, newest_first) = match order_by.split_whitespace().collect::<Vec<_>>()[..] {
            [] | ["create_time", "desc"] => (false, true),
            ["create_time"] | ["create_time", "asc"] => (false, false),
            ["end_time", "desc"] => (true, true),
            ["end_time"] | ["end_time", "asc"] => (true, false),
            _ => {
                let wanted = "must be \"create_time\" or \"end_time\", with \"asc\" or \"desc\" behind it";
                return Err(AgentError::field("order_by", wanted));
            }
        };
        Ok(Self { by_end, newest_first })
    }

    /// Where a page begins.
    pub(crate) fn place(self, token: &str) -> Result<Place, AgentError> {
        let (end, id) = if self.by_end && !token.is_empty() { token.split_once('.').unwrap_or(("", "")) } else { ("0", token) };
        match end.parse() {
            Ok(end_ms) if token.is_empty() || id.len() == ID => Ok(Place { end_ms, id: id.to_owned() }),
            _ => Err(AgentError::new(Reason::PageTokenInvalid, "the page token is not one of ours, or belongs to another order")),
        }
    }

    /// Whether a task is listed at all.
    pub(crate) fn holds(self, task: &pb::Task) -> bool {
        !self.by_end || task.end_time.is_some()
    }

    /// Where a task stands.
    pub(crate) fn key(self, task: &pb::Task) -> Place {
        let end = task.end_time.as_ref().filter(|_| self.by_end);
        Place { end_ms: end.map_or(0, timestamp_ms), id: task.id.clone() }
    }

    /// Whether one place comes behind another.
    pub(crate) fn later(self, place: &Place, than: &Place) -> bool {
        than.id.is_empty() || if self.newest_first { place < than } else { place > than }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_others_named() {
        let order = |by_end, newest_first| Order { by_end, newest_first };
        assert_eq!(Order::parse("").unwrap(), order(false, true));
        assert_eq!(Order::parse("create_time").unwrap(), order(false, false));
        assert_eq!(Order::parse(" end_time  desc ").unwrap(), order(true, true));
        for bad in ["cost", "create_time up", "end_time desc now"] {
            assert_eq!(Order::parse(bad).unwrap_err().fields[0].field, "order_by", "{bad}");
        }
    }

    #[test]
    fn a_token_is_its_place_and_belongs_to_its_order() {
        let place = Place { end_ms: 17, id: "x".repeat(ID) };
        let by_end = Order { by_end: true, newest_first: true };
        assert_eq!(by_end.place(&place.token()).unwrap(), place);
        let by_creation = Order { by_end: false, newest_first: true };
        assert_eq!(by_creation.place(&place.token()).unwrap_err().reason, Reason::PageTokenInvalid);
        assert_eq!(by_end.place(&place.id).unwrap_err().reason, Reason::PageTokenInvalid);
    }
}
