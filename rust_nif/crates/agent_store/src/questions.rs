//! What a task asks of people and clients, and which answers fit. Pure.

use agent_core::header::{timestamp, timestamp_ms};
use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use pb::input_answer::Answer;
use prost::Message;

/// Answers that one task keeps.
const MAX_ANSWERS: usize = 1000;
/// Bytes of them all: each is written anew with the task.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Kind of the question whether a task may go on although its money is spent.
pub const MONEY: &str = "budget";

/// The name of that question, asked by an attempt.
pub fn money_id(fence: i64) -> String {
    format!("budget:{fence}")
}

/// Whether it is the name of such a question.
pub fn is_money(input_id: &str) -> bool {
    input_id.starts_with("budget:")
}

/// How often more money was approved, and whether it was refused.
pub(crate) fn money(answers: &[pb::InputAnswer]) -> (i64, bool) {
    let said = |yes| answers.iter().filter(|a| is_money(&a.input_id) && a.answer == Some(Answer::Approve(yes))).count();
    (i64::try_from(said(true)).unwrap_or(i64::MAX - 1), said(false) > 0)
}

/// Questions that no answer is there for.
pub(crate) fn unanswered(asked: Vec<pb::InputRequested>, answers: &[pb::InputAnswer]) -> Vec<pb::InputRequested> {
    asked.into_iter().filter(|i| answers.iter().all(|a| a.input_id != i.input_id)).collect()
}

/// When the first of these questions is given up, in ms; 0: none of them.
pub(crate) fn first_expiry(pending: &[pb::InputRequested]) -> i64 {
    pending.iter().filter_map(|i| i.expire_time.as_ref()).map(timestamp_ms).min().unwrap_or(0)
}

/// Takes out the questions whose time is over; gives the answers that take the place of theirs.
pub(crate) fn expire(pending: &mut Vec<pb::InputRequested>, now_ms: i64) -> Vec<pb::InputAnswer> {
    let over = |i: &mut pb::InputRequested| i.expire_time.as_ref().is_some_and(|at| timestamp_ms(at) <= now_ms);
    pending
        .extract_if(.., over)
        .map(|i| pb::InputAnswer {
            input_id: i.input_id,
            answer: Some(Answer::Expired(true)),
            time: Some(timestamp(now_ms)),
            ..Default::default()
        })
        .collect()
}

/// What a task with these questions waits for: the first one says it.
pub(crate) fn waiting_for(pending: &[pb::InputRequested]) -> pb::WaitingFor {
    match pending.first().map(|i| i.kind.as_str()) {
        Some("approval") => pb::WaitingFor::Approval,
        Some("client_tool") => pb::WaitingFor::ClientTool,
        Some(MONEY) => pb::WaitingFor::Budget,
        _ => pb::WaitingFor::Input,
    }
}

/// The answer that a signal brings.
pub(crate) fn answer(signal: pb::SignalTaskRequest, now_ms: i64) -> pb::InputAnswer {
    use pb::signal_task_request::Signal;
    pb::InputAnswer {
        input_id: signal.input_id,
        answer: signal.signal.map(|s| match s {
            Signal::Approve(yes) => Answer::Approve(yes),
            Signal::Input(text) => Answer::Input(text),
            Signal::ToolResult(text) => Answer::ToolResult(text),
        }),
        payload: signal.payload,
        comment: signal.comment,
        request_id: signal.request_id,
        time: Some(timestamp(now_ms)),
    }
}

/// Whether this very answer was given before.
pub(crate) fn known(new: &pb::InputAnswer, answers: &[pb::InputAnswer]) -> Result<bool, AgentError> {
    let Some(old) = answers.iter().find(|a| !a.request_id.is_empty() && a.request_id == new.request_id) else { return Ok(false) };
    let same_question = new.input_id.is_empty() || old.input_id == new.input_id;
    if same_question && old.answer == new.answer && old.payload == new.payload {
        return Ok(true);
    }
    Err(AgentError::new(Reason::RequestIdReused, "the request_id belongs to another answer of this task").with("field", "signal"))
}

/// The answer under the name of its question, which it must fit. One that comes before its question must name it.
pub(crate) fn fitting(mut answer: pb::InputAnswer, task: &pb::Task) -> Result<pb::InputAnswer, AgentError> {
    let pending = task.pending_inputs.as_slice();
    let asked = || pending.iter().map(|i| i.input_id.as_str()).collect::<Vec<_>>().join(", ");
    let question = if answer.input_id.is_empty() {
        match pending {
            [only] => Some(only),
            [] => return Err(wrong_state("the task asks nothing now; name input_id to answer before it does", task)),
            _ => return Err(AgentError::field("input_id", format!("the task asks several things, name one: {}", asked()))),
        }
    } else {
        pending.iter().find(|i| i.input_id == answer.input_id)
    };
    if let Some(question) = question {
        let wanted = expected(&question.kind, &answer);
        if let Some(wanted) = wanted {
            return Err(AgentError::field("signal", format!("{} ({}) is answered by {wanted}", question.input_id, question.kind)));
        }
        answer.input_id.clone_from(&question.input_id);
    } else if task.answers.iter().any(|a| a.input_id == answer.input_id) {
        return Err(wrong_state(&format!("{} is answered already", answer.input_id), task));
    } else if !pending.is_empty() {
        return Err(AgentError::field("input_id", format!("\"{}\" is not what the task asks: {}", answer.input_id, asked())));
    }
    if task.answers.len() >= MAX_ANSWERS {
        return Err(wrong_state(&format!("the task has {MAX_ANSWERS} answers, more are not kept"), task));
    }
    let kept: usize = task.answers.iter().map(Message::encoded_len).sum();
    if kept + answer.encoded_len() > MAX_ANSWER_BYTES {
        return Err(wrong_state(&format!("the task has {kept} bytes of answers, more than {MAX_ANSWER_BYTES} are not kept"), task));
    }
    Ok(answer)
}

/// What a question of a kind wants where the answer is something else.
fn expected(kind: &str, given: &pb::InputAnswer) -> Option<&'static str> {
    let (fits, wanted) = match (kind, &given.answer) {
        _ if given.payload.is_some() => return None,
        (MONEY, a) => (matches!(a, Some(Answer::Approve(_))), "approve"),
        ("client_tool", a) => (matches!(a, Some(Answer::ToolResult(_))), "tool_result or payload"),
        ("approval", a) => (matches!(a, Some(Answer::Approve(_) | Answer::ToolResult(_))), "approve, tool_result or payload"),
        (_, a) => (a.is_some(), "approve, input or payload"),
    };
    (!fits).then_some(wanted)
}

fn wrong_state(why: &str, task: &pb::Task) -> AgentError {
    AgentError::new(Reason::WrongState, why).with("state", task.state().as_str_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(ids: &[(&str, &str)]) -> pb::Task {
        let pending =
            ids.iter().map(|(id, kind)| pb::InputRequested { input_id: (*id).into(), kind: (*kind).into(), ..Default::default() });
        pb::Task { pending_inputs: pending.collect(), ..Default::default() }
    }

    fn says(id: &str, answer: Answer) -> pb::InputAnswer {
        pb::InputAnswer { input_id: id.into(), answer: Some(answer), ..Default::default() }
    }

    #[test]
    fn the_only_question_needs_no_name_and_several_do() {
        let words = || says("", Answer::Input("x".into()));
        assert_eq!(fitting(words(), &asks(&[("a", "question")])).unwrap().input_id, "a");
        assert_eq!(fitting(words(), &asks(&[("a", "question"), ("b", "question")])).unwrap_err().fields[0].field, "input_id");
        assert_eq!(fitting(words(), &asks(&[])).unwrap_err().reason, Reason::WrongState);
    }

    #[test]
    fn an_answer_of_another_kind_says_what_is_wanted() {
        let error = fitting(says("a", Answer::Input("yes".into())), &asks(&[("a", "approval")])).unwrap_err();
        assert!(error.message.contains("approve"), "{error}");
        assert!(fitting(says("a", Answer::Approve(false)), &asks(&[("a", "approval")])).is_ok());
        assert!(fitting(says("a", Answer::Approve(true)), &asks(&[("a", "client_tool")])).is_err());
    }

    #[test]
    fn answers_that_come_early_are_kept_up_to_their_number_and_their_bytes() {
        let mut task = asks(&[]);
        let long = says("later", Answer::Input("x".repeat(MAX_ANSWER_BYTES / 4)));
        task.answers = (0..3).map(|n| pb::InputAnswer { input_id: n.to_string(), ..long.clone() }).collect();
        assert!(fitting(says("short", Answer::Approve(true)), &task).is_ok());
        assert_eq!(fitting(long, &task).unwrap_err().reason, Reason::WrongState);
        task.answers = (0..MAX_ANSWERS).map(|n| says(&n.to_string(), Answer::Approve(true))).collect();
        assert_eq!(fitting(says("one more", Answer::Approve(true)), &task).unwrap_err().reason, Reason::WrongState);
    }

    #[test]
    fn a_question_is_answered_by_nobody_when_its_time_is_over() {
        let mut asked = asks(&[("a", "question"), ("b", "approval"), ("c", "question")]).pending_inputs;
        assert_eq!(first_expiry(&asked), 0);
        (asked[0].expire_time, asked[1].expire_time) = (Some(timestamp(2000)), Some(timestamp(1000)));
        assert_eq!(first_expiry(&asked), 1000);
        assert!(expire(&mut asked, 999).is_empty());
        let nobody = expire(&mut asked, 1000);
        assert_eq!((nobody.len(), nobody[0].input_id.as_str(), &nobody[0].answer), (1, "b", &Some(Answer::Expired(true))));
        assert_eq!(asked.iter().map(|i| i.input_id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn an_early_answer_is_kept_and_one_to_nothing_asked_is_refused() {
        let early = says("later", Answer::Approve(true));
        assert!(fitting(early.clone(), &asks(&[])).is_ok());
        assert!(fitting(early.clone(), &asks(&[("a", "question")])).is_err());
        let answered = pb::Task { answers: vec![early.clone()], ..Default::default() };
        assert_eq!(fitting(early, &answered).unwrap_err().reason, Reason::WrongState);
    }

    #[test]
    fn the_same_request_again_changes_nothing_and_another_answer_under_it_is_refused() {
        let mut first = says("a", Answer::Approve(true));
        first.request_id = "r".into();
        assert!(known(&first, std::slice::from_ref(&first)).unwrap());
        let other = pb::InputAnswer { answer: Some(Answer::Approve(false)), ..first.clone() };
        assert_eq!(known(&other, &[first]).unwrap_err().reason, Reason::RequestIdReused);
    }
}
