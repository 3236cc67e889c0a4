//! Every atom of the native boundary: none is ever made from outside.

rustler::atoms! {
    ok, error, busy, done, frame, passive, closed, attach_worker, host, native_down, undefined, unknown, agent_native, grpc, request, ready, ended, chunk, gone, start,
    // fields of maps
    reason, message, metadata, fields, field, description, retry_after_ms, epoch, schema, database, schedule_fired, due_schedules, schedule_id, tick_ms, overlap, last_task, queue, cancel_old, allow, skip, address, port, threads,
    task_id, request_id, tenant, agent_id, agent_type, task_type, method, framework, fallback_frameworks, priority, durability, capabilities, model,
    tools, labels, max_steps, retry, max_attempts, initial_backoff_ms, max_backoff_ms, multiplier, non_retryable, max_duration_ms,
    max_attempt_duration_ms, ran_ms, max_queue_duration_ms, not_before_ms, heartbeat_timeout_ms, block_grace_ms, stream_text, allow_replay, parent_task_id, ends_with,
    retry_of, has_plan, create_ms, fence, attempt, header, payload, lost_count, token, call, agent, grace_ms, name, run,
    worker, host_pid, env_lock_hash, executor, unjournaled_tools, candidates, score, refused, rule, parts, explored, exploration, state, result, metrics, attempt_outcome, cause, proof,
    events, outcome, counts, queue_ms, execution_ms, input_tokens, output_tokens, cached_tokens, reasoning_tokens, provider_calls, tool_calls,
    memory_bytes, cpu_ms, cost_micros, input, output, cached, reasoning, usage, provider, finish_reason, latency_ms, response, text, stream, credit,
    check_task, deadline_ms, limit_ms, base_url, api_key, unavailable, dialect, in_flight, models, errors, id, arguments, content, is_error, level, source, step_id, status,
    discard_text, detail, traceback, code, retryable, witness, signals, at_ms, confirmed_dead, survivors, fenced_at_ms, duration_us,
    instructions, configured, etag, memory_namespace, running_tasks, crew_profile, role, goal, backstory, expected_output, task_types, built_in,
    versions, lock_hash, environments, alone, task_ids, python, progress, workers, restarts, isolation, unavailable_reason, rss_bytes, started_ms, worker_id, python_version, import_ms, features,
    config_json, entrypoint, project, storage_dir, engine_version, concurrency, engine_tools, start_time_ms, seed, traceparent, task, tool_call_id, recorded,
    decision, occurrence, replay, framework_version, start_ms, end_ms, attempts, cancel_requested, waiting_for, number, started, template,
    budget, want, needs, account, limit, spent, lent, resets_ms, changed, ledger, close, window_ms, max_cost_micros, on_budget_end, policy, budget_denied, budget_approved, money, wait, fail, cheaper_model, expire_ms,
    max_tokens, store, journal, replayed, in_doubt, diverged, withdrawn, provider_calls_replayed, cache_hit, cache_hits, hedged, resumed, key_id, inputs, park, signal, signal_task,
    // values
    more, auto, native, hybrid, durable, ephemeral, queued, running, waiting, succeeded, failed, cancelled, timed_out, lost, fenced,
    namespace, descendants, unconfirmed, none_needed, stopped, starting, created, existing, claimed, requeued, once, safe, journaled,
    stop, length, content_filter, refusal, pause, other,
    // operations
    submit, claim, route, finish, requeue, wake, cancel_request, delete, put_agent, delete_agent, recover, tasks, agents, due, all,
    // events
    state_changed, attempt_started, step_started, step_finished, tool_call, tool_result, provider_call, worker_assigned, worker_lost, log, worker_event,
    // agent machine
    model_reply, model_error, call_model, call_tool, emit, tool_error, unknown_tool,
    // plans
    scope, life, answers, plan, again, go, keep, kept, timeout_ms, streams, asked, in_step, skipped,
    // grpc methods and replies
    submit_task, cancel_task, retry_task, delete_task, create_agent, get_agent, list_agents, update_agent, list_agent_types,
    list_frameworks, get_framework, restart_workers, agent_types, frameworks, restarted, serving, draining,
    // steps around a run
    tool_limit, same, trimmed, fits, read, misfit,
    // wire
    init, execute, tool_reply, tool_begin_reply, hello, tool_request, tool_begin, tool_end, health_reply,
}
