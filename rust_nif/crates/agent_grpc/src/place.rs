//! Where a watcher is in the events of a task.

use agent_proto::agents::v1 as pb;
use pb::task_event::Event;

/// The last event that a watcher was given, and how much of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the last event.
    pub(crate) after: i64,
    /// Attempt and bytes of its text that the watcher has; None: not known yet, or text is not wanted ahead of its batch.
    pub(crate) text: Option<(i32, i64)>,
    wants_text: bool,
    wants_ahead: bool,
}

impl Place {
    pub(crate) fn new(after: i64, wants_text: bool, wants_ahead: bool) -> Self {
        Self { after, text: None, wants_text, wants_ahead }
    }

    /// Moves behind an event; whether the watcher is given it.
    pub(crate) fn passes(&mut self, event: &pb::TaskEvent) -> bool {
        let mut wanted = true;
        match &event.event {
            Some(Event::AttemptStarted(_)) => self.text = Some((event.attempt, 0)),
            Some(Event::TextDelta(delta)) => {
                let end = delta.offset + i64::try_from(delta.text.len()).unwrap_or(0);
                // A batch repeats what came ahead of it: the watcher has not less than before.
                let had = self.text.filter(|(attempt, _)| *attempt == event.attempt).map_or(0, |(_, offset)| offset);
                self.text = Some((event.attempt, end.max(had)));
                wanted = self.wants_text;
                if delta.ahead {
                    return wanted;
                }
            }
            _ => {}
        }
        self.after = event.sequence;
        if !self.wants_ahead {
            self.text = None;
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sequence: i64, offset: i64, text: &str, ahead: bool) -> pb::TaskEvent {
        let delta = pb::TextDelta { text: text.into(), offset, ahead };
        pb::TaskEvent { sequence, attempt: 1, event: Some(Event::TextDelta(delta)), ..Default::default() }
    }

    #[test]
    fn text_ahead_moves_no_cursor_and_its_batch_takes_nothing_back() {
        let mut place = Place::new(0, true, true);
        let started = pb::AttemptStarted { ..Default::default() };
        place.passes(&pb::TaskEvent { sequence: 2, attempt: 1, event: Some(Event::AttemptStarted(started)), ..Default::default() });
        assert_eq!((place.after, place.text), (2, Some((1, 0))));
        assert!(place.passes(&text(3, 0, "abc", true)));
        assert_eq!((place.after, place.text), (2, Some((1, 3))));
        assert!(place.passes(&text(3, 0, "ab", false)));
        assert_eq!((place.after, place.text), (3, Some((1, 3))));
    }

    #[test]
    fn who_wants_no_text_is_given_none_and_goes_on_behind_it() {
        let mut place = Place::new(0, false, false);
        assert!(!place.passes(&text(1, 0, "abc", false)));
        assert_eq!((place.after, place.text), (1, None));
    }
}
