%% @doc Native tasks on the real native library, from submit to their recorded end.
-module(native_task_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([a_long_answer_streams_to_its_end/1]).
-export([a_task_runs_to_its_recorded_end/1, an_ephemeral_task_runs_too/1, a_tool_is_called_and_its_result_used/1,
         a_cancel_aborts_the_provider_call_and_proves_it/1, a_queued_task_is_cancelled_without_a_run/1,
         a_second_cancel_says_that_the_task_has_ended/1, a_provider_that_fails_is_tried_again_to_the_limit/1,
         a_refused_key_is_not_tried_again/1, max_duration_ends_the_task/1, max_queue_duration_ends_what_waits/1,
         more_tasks_than_slots_wait_and_all_end/1, an_unknown_agent_type_is_refused/1, a_full_queue_is_refused/1,
         the_shell_runs_a_task_by_every_option_form/1, views_answer_and_why_says_why/1, views_wait_for_nobody/1,
         a_draining_node_refuses_and_waits_for_what_runs/1]).

%% A view answers within this, in us, whoever is busy: it reads tables, and the store where a task is not under way.
-define(AT_ONCE_US, 100000).

-import(engine_test_node, [submit/1, task/1, until_ended/1, eventually/1]).

all() ->
    [a_long_answer_streams_to_its_end, a_task_runs_to_its_recorded_end, an_ephemeral_task_runs_too, a_tool_is_called_and_its_result_used,
     a_cancel_aborts_the_provider_call_and_proves_it, a_queued_task_is_cancelled_without_a_run,
     a_second_cancel_says_that_the_task_has_ended, a_provider_that_fails_is_tried_again_to_the_limit,
     a_refused_key_is_not_tried_again, max_duration_ends_the_task, max_queue_duration_ends_what_waits,
     more_tasks_than_slots_wait_and_all_end, an_unknown_agent_type_is_refused, a_full_queue_is_refused,
     the_shell_runs_a_task_by_every_option_form, views_answer_and_why_says_why, views_wait_for_nobody,
     a_draining_node_refuses_and_waits_for_what_runs].

init_per_suite(Config) ->
    Config.

end_per_suite(_Config) ->
    ok.

init_per_testcase(Case, Config) ->
    Extra = case Case of
                a_queued_task_is_cancelled_without_a_run -> #{agent_execution => #{max_running => 1}};
                max_queue_duration_ends_what_waits -> #{agent_execution => #{max_running => 1}};
                more_tasks_than_slots_wait_and_all_end -> #{agent_execution => #{max_running => 3}};
                a_full_queue_is_refused -> #{agent_execution => #{max_running => 1, max_queued => 2}};
                _ -> #{}
            end,
    Dir = filename:join(?config(priv_dir, Config), atom_to_list(Case)),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    ok = engine_test_node:start(Dir, Extra),
    Config.

%% Whatever a case did: no slot is taken and no row is left behind.
end_per_testcase(_Case, _Config) ->
    ok = agent_engine:resume(),
    [agent_engine:cancel(<<"default">>, Id, 0, <<>>) || #{task_id := Id} <- execution_rows:views()],
    eventually(fun() -> agent_engine:running() =:= 0 andalso execution_rows:views() =:= [] end),
    eventually(fun() -> execution_coordinator_sup:count() =:= 0 end),
    engine_test_node:stop().

%% Forty pieces and more than the credit of one call.
a_long_answer_streams_to_its_end(_) ->
    {ok, Id} = submit(#{model => <<"drip">>}),
    #{state := succeeded, output := Output} = until_ended(Id),
    ?assertEqual(40, length(string:lexemes(Output, " "))).

a_task_runs_to_its_recorded_end(_) ->
    {ok, Id} = submit(#{description => <<"hello">>}),
    ?assertMatch(#{state := succeeded, output := <<"hello">>, executor := <<"native">>, attempts := 1}, until_ended(Id)).

an_ephemeral_task_runs_too(_) ->
    {ok, Id} = submit(#{description => <<"hello">>, durability => ephemeral}),
    ?assertMatch(#{state := succeeded, output := <<"hello">>}, until_ended(Id)).

a_tool_is_called_and_its_result_used(_) ->
    {ok, Id} = submit(#{model => <<"tool">>, tools => [<<"calculate">>]}),
    ?assertMatch(#{state := succeeded, output := <<"42">>}, until_ended(Id)).

a_cancel_aborts_the_provider_call_and_proves_it(_) ->
    {ok, Id} = submit(#{model => <<"hang">>}),
    ?assertMatch({ok, #{witness := none_needed, confirmed_dead := true}}, agent_engine:cancel(<<"default">>, Id, 0, <<"test">>)),
    ?assertMatch(#{state := cancelled, reason := <<"TASK_CANCELLED">>}, task(Id)),
    eventually(fun() -> supervisor:which_children(native_agent_pool) =:= [] end).

a_queued_task_is_cancelled_without_a_run(_) ->
    {ok, First} = submit(#{model => <<"hang">>}),
    {ok, Second} = submit(#{}),
    ?assertMatch(#{state := queued}, task(Second)),
    ?assertMatch({ok, #{confirmed_dead := true}}, agent_engine:cancel(<<"default">>, Second, 0, <<"test">>)),
    ?assertMatch(#{state := cancelled, attempts := 0}, task(Second)),
    ?assertMatch(#{state := running}, task(First)).

a_second_cancel_says_that_the_task_has_ended(_) ->
    {ok, Id} = submit(#{model => <<"hang">>}),
    {ok, _} = agent_engine:cancel(<<"default">>, Id, 0, <<>>),
    ?assertMatch({error, #{reason := task_already_terminal}}, agent_engine:cancel(<<"default">>, Id, 0, <<>>)),
    ?assertMatch({error, #{reason := task_not_found}}, agent_engine:cancel(<<"somebody">>, Id, 0, <<>>)).

a_provider_that_fails_is_tried_again_to_the_limit(_) ->
    %% The attempts' backoff comes from the header that the store rebuilds, so the limit is reached by time, not by count.
    {ok, Id} = submit(#{model => <<"broken">>}),
    eventually(fun() -> maps:get(attempts, task(Id)) >= 2 end),
    {ok, _} = agent_engine:cancel(<<"default">>, Id, 0, <<>>),
    {ok, [#{outcome := <<"failed">>, cause := Cause} | _]} = agent_store:read({attempts, Id}),
    ?assertMatch(<<"PROVIDER_", _/binary>>, Cause).

a_refused_key_is_not_tried_again(_) ->
    {ok, Id} = submit(#{model => <<"refused">>}),
    ?assertMatch(#{state := failed, attempts := 1, reason := <<"PROVIDER_AUTH">>}, until_ended(Id)).

max_duration_ends_the_task(_) ->
    {ok, Id} = submit(#{model => <<"hang">>, max_duration_ms => 300}),
    ?assertMatch(#{state := timed_out, reason := <<"TASK_TIMEOUT">>}, until_ended(Id)).

max_queue_duration_ends_what_waits(_) ->
    {ok, _} = submit(#{model => <<"hang">>}),
    {ok, Id} = submit(#{max_queue_duration_ms => 200}),
    ?assertMatch(#{state := timed_out, attempts := 0}, until_ended(Id)).

more_tasks_than_slots_wait_and_all_end(_) ->
    Ids = [Id || N <- lists:seq(1, 60), {ok, Id} <- [submit(#{priority => N rem 10})]],
    60 = length(Ids),
    [?assertMatch(#{state := succeeded, attempts := 1}, until_ended(Id)) || Id <- Ids].

an_unknown_agent_type_is_refused(_) ->
    ?assertMatch({error, #{reason := agent_not_found}}, submit(#{agent_type => <<"astronaut">>})),
    ?assertMatch({error, #{reason := agent_not_found}}, submit(#{agent_type => <<>>, agent_id => <<"nobody">>})).

a_full_queue_is_refused(_) ->
    %% One runs, two wait; the queue counts a task when it takes it, just after the submit has answered.
    lists:foreach(fun(Waiting) ->
                      {ok, _} = submit(#{model => <<"hang">>}),
                      eventually(fun() -> maps:get(queued, run_queue:counts()) =:= Waiting end)
                  end, [0, 1, 2]),
    ?assertMatch({error, #{reason := queue_full, retry_after_ms := _}}, submit(#{model => <<"hang">>})),
    ?assertMatch({error, #{reason := queue_full}}, submit(#{model => <<"hang">>, durability => ephemeral})).

the_shell_runs_a_task_by_every_option_form(_) ->
    {ok, Agent} = agent_execution_supervisor:spawn_agent(researcher, native),
    {ok, Auto} = agent_execution_supervisor:spawn_agent(researcher, auto),
    ?assertNotEqual(Agent, Auto),
    Forms = [#{}, [], #{method => native}, [{method, auto}], #{method => {native, #{max_steps => 3}}}, native,
             auto, {native, #{max_steps => 3}}],
    [?assertMatch({ok, #{state := succeeded, output := <<"say it">>}},
                  agent_execution_supervisor:execute_task(Agent, "say it", Form)) || Form <- Forms],
    ?assertMatch({error, #{reason := invalid_field}},
                 agent_execution_supervisor:execute_task(Agent, "say it", #{method => {framework, unheard_of, #{}}})),
    ?assertMatch({ok, #{state := succeeded}}, native_agent_pool:execute_task(Agent, "say it", #{})),
    ?assertMatch({error, #{reason := agent_not_found}}, agent_execution_supervisor:spawn_agent(astronaut, native)).

views_answer_and_why_says_why(_) ->
    {ok, Id} = submit(#{model => <<"hang">>}),
    eventually(fun() -> [running] =:= [S || #{state := S} <- agent_execution:tasks()] end),
    Suffix = binary:part(Id, byte_size(Id), -8),
    {ok, #{state := running, live := #{executor := <<"native">>}}} = agent_execution:task(Suffix),
    {ok, Sentence} = agent_execution:why(Suffix),
    ?assertMatch({_, _}, binary:match(Sentence, <<"on a native agent">>)),
    [_ | _] = agent_execution:agents(),
    [_ | _] = agent_execution:frameworks(),
    [] = agent_execution:workers(),
    ?assert(lists:any(fun({Name, _, _, _}) -> Name =:= <<"agent_engine_sup">> end, agent_execution:tree())).

views_wait_for_nobody(_) ->
    {ok, Id} = submit(#{model => <<"hang">>}),
    eventually(fun() -> [running] =:= [S || #{state := S} <- agent_execution:tasks()] end),
    Busy = [agent_registry, run_queue, task_recovery, framework_adapter_manager, native_agent_pool, performance_monitor,
            execution_coordinator_sup, agent_execution_supervisor],
    Pids = [P || N <- Busy, P <- [whereis(N)], is_pid(P)],
    true = length(Pids) >= 6,
    [ok = sys:suspend(P) || P <- Pids],
    try
        [begin
             {Us, Answer} = timer:tc(fun() -> View(Id) end),
             ?assert(Answer =/= error),
             ?assert(Us < ?AT_ONCE_US, {Name, Us})
         end || {Name, View} <- views()]
    after
        [ok = sys:resume(P) || P <- Pids]
    end.

views() ->
    [{tasks, fun(_) -> agent_execution:tasks() end}, {task, fun agent_execution:task/1},
     {workers, fun(_) -> agent_execution:workers() end}, {agents, fun(_) -> agent_execution:agents() end},
     {frameworks, fun(_) -> agent_execution:frameworks() end}, {why, fun agent_execution:why/1}].

a_draining_node_refuses_and_waits_for_what_runs(_) ->
    {ok, Id} = submit(#{model => <<"slow">>}),
    ok = agent_engine:drain(10000),
    ?assertMatch(#{state := succeeded}, task(Id)),
    ?assertMatch({error, #{reason := draining}}, submit(#{})),
    ok = agent_engine:resume(),
    {ok, Hanging} = submit(#{model => <<"hang">>}),
    ok = agent_engine:drain(100),
    ?assertMatch(#{state := running}, task(Hanging)).
