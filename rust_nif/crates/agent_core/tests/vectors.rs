//! Golden bytes of messages, written by the Python side: read, written again and hashed here.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use agent_core::hash;
use agent_proto::agents::v1 as pb;
use agent_proto::worker::v1 as w;
use prost::Message;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn again<M: Message + Default>(data: &[u8]) -> Vec<u8> {
    M::decode(data).unwrap().encode_to_vec()
}

#[test]
fn messages_of_the_other_side_are_written_and_hashed_alike() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/vectors/wire/messages.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut seen = 0;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let [name, kind, sha, hex] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let data = bytes(hex);
        let (written, hashed) = match kind {
            "singularity.agents.v1.AgentTask" => {
                (again::<pb::AgentTask>(&data), Some(hash::content_hash(&pb::AgentTask::decode(data.as_slice()).unwrap())))
            }
            "singularity.agents.v1.ChatRequest" => {
                (again::<pb::ChatRequest>(&data), Some(hash::chat_hash(&pb::ChatRequest::decode(data.as_slice()).unwrap())))
            }
            "singularity.agents.v1.EmbedRequest" => {
                (again::<pb::EmbedRequest>(&data), Some(hash::embed_hash(&pb::EmbedRequest::decode(data.as_slice()).unwrap())))
            }
            "singularity.agents.v1.SignalTaskRequest" => (again::<pb::SignalTaskRequest>(&data), None),
            "singularity.worker.v1.Execute" => (again::<w::Execute>(&data), None),
            "singularity.worker.v1.Result" => (again::<w::Result>(&data), None),
            "singularity.worker.v1.ToolEnd" => (again::<w::ToolEnd>(&data), None),
            other => panic!("{name} is a {other}, which is not read here"),
        };
        assert_eq!(written, data, "{name}");
        if let Some(hashed) = hashed {
            assert_eq!(hashed.to_vec(), bytes(sha), "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 7);
}
