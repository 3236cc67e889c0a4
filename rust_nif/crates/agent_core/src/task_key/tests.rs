use proptest::prelude::*;

use super::*;

fn tool(name: &str, replay: pb::ToolReplay) -> pb::ToolDefinition {
    pb::ToolDefinition { name: name.into(), replay: replay as i32, ..Default::default() }
}

fn task(cache: pb::CacheMode, tools: Vec<pb::ToolDefinition>) -> pb::AgentTask {
    pb::AgentTask {
        description: "sum up".into(),
        context: Some(pb::TaskContext { available_tools: tools, ..Default::default() }),
        execution_hints: Some(pb::ExecutionHints { cache: cache as i32, ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn a_tool_with_effects_forbids_it_and_one_declared_safe_does_not() {
    let with = |replay| cacheable(&task(pb::CacheMode::Use, vec![tool("pay", replay)]), &[], &[]);
    assert_eq!(with(pb::ToolReplay::Once), Cacheable::Effects("pay".into()));
    assert_eq!(with(pb::ToolReplay::Unspecified), Cacheable::Effects("pay".into()));
    assert!(matches!(with(pb::ToolReplay::Safe), Cacheable::Yes { read: true, tools, .. } if tools == ["pay", "calculate"]));
    let agents = |name: &str| cacheable(&task(pb::CacheMode::Use, vec![]), &[name.to_owned()], &[]);
    assert_eq!(agents("my_tools:pay"), Cacheable::Effects("my_tools:pay".into()));
    assert!(matches!(agents("calculate"), Cacheable::Yes { .. }));
}

#[test]
fn refresh_writes_only_and_bypass_does_neither() {
    assert!(matches!(cacheable(&task(pb::CacheMode::Refresh, vec![]), &[], &[]), Cacheable::Yes { read: false, .. }));
    assert_eq!(cacheable(&task(pb::CacheMode::Bypass, vec![]), &[], &[]), Cacheable::No);
    assert_eq!(cacheable(&task(pb::CacheMode::Unspecified, vec![]), &[], &[]), Cacheable::No);
}

prop_compose! {
    fn content()(description in "[a-c]{0,3}", model in "[a-b]{0,1}", seed in proptest::option::of(0..2i64), tenant in "[xy]")
        -> (String, String, Option<i64>, String) { (description, model, seed, tenant) }
}

prop_compose! {
    /// What changes no answer.
    fn beside()(label in "[a-z]{0,4}", parent in "[a-z]{0,4}", cost in proptest::option::of(0..9i64), priority in proptest::option::of(0..9i32),
                refresh in any::<bool>(), durability in 0..3i32) -> (String, String, Option<i64>, Option<i32>, bool, i32) {
        (label, parent, cost, priority, refresh, durability)
    }
}

fn made(c: &(String, String, Option<i64>, String), b: &(String, String, Option<i64>, Option<i32>, bool, i32)) -> [u8; 32] {
    let task = pb::AgentTask {
        description: c.0.clone(),
        labels: [("l".to_owned(), b.0.clone())].into(),
        parent_task_id: b.1.clone(),
        requirements: Some(pb::TaskRequirements { model: c.1.clone(), max_cost_micros: b.2, ..Default::default() }),
        execution_hints: Some(pb::ExecutionHints {
            seed: c.2,
            priority: b.3,
            cache: if b.4 { pb::CacheMode::Refresh } else { pb::CacheMode::Use } as i32,
            durability: b.5,
            ..Default::default()
        }),
        ..Default::default()
    };
    key(&task, &[c.3.as_bytes(), b"agent"])
}

proptest! {
    #[test]
    fn the_key_is_equal_where_the_content_is_whatever_stands_beside_it(c1 in content(), c2 in content(), b1 in beside(), b2 in beside()) {
        prop_assert_eq!(made(&c1, &b1) == made(&c2, &b2), c1 == c2);
    }

    #[test]
    fn parts_around_do_not_run_into_each_other(a in "[ab]{0,3}", b in "[ab]{0,3}", c in "[ab]{0,3}", d in "[ab]{0,3}") {
        let task = pb::AgentTask::default();
        let equal = key(&task, &[a.as_bytes(), b.as_bytes()]) == key(&task, &[c.as_bytes(), d.as_bytes()]);
        prop_assert_eq!(equal, (a, b) == (c, d));
    }
}
