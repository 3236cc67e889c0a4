%% @doc Tasks of Python agents through the engine, on real workers: results, losses, cancels with proof.
-module(framework_task_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([a_function_runs_in_a_worker/1, a_killed_worker_is_followed_by_attempt_2/1,
         a_looping_agent_is_cancelled_with_proof/1, a_deaf_agent_is_killed_after_its_grace/1,
         max_attempt_duration_kills_and_tries_again/1, a_failure_of_the_agent_is_final/1,
         a_disabled_framework_is_refused_with_the_remedy/1, tasks_beyond_the_workers_wait_in_the_queue/1,
         a_lease_that_crossed_its_cancel_is_given_back/1, the_pool_answers_the_shell/1]).

-import(engine_test_node, [submit/1, task/1, until_ended/1, eventually/1, eventually/2]).

all() ->
    [a_function_runs_in_a_worker, a_killed_worker_is_followed_by_attempt_2, a_looping_agent_is_cancelled_with_proof,
     a_deaf_agent_is_killed_after_its_grace, max_attempt_duration_kills_and_tries_again,
     a_failure_of_the_agent_is_final, a_disabled_framework_is_refused_with_the_remedy,
     tasks_beyond_the_workers_wait_in_the_queue, a_lease_that_crossed_its_cancel_is_given_back, the_pool_answers_the_shell].

%% Runs where the environment of plain Python agents was set up (`SINGULARITY_ENVS', as the test runner says).
init_per_suite(Config) ->
    case os:getenv("SINGULARITY_ENVS") of
        false -> {skip, "SINGULARITY_ENVS is not set: no Python environments"};
        Envs ->
            case filelib:is_regular(filename:join([Envs, "custom", "bin", "python"])) of
                true -> Config;
                false -> {skip, "the environment 'custom' is not set up"}
            end
    end.

end_per_suite(_Config) ->
    ok.

%% The working directories are short: the path of a Unix socket has at most 107 bytes.
init_per_testcase(Case, Config) ->
    Dir = string:trim(os:cmd("mktemp -d /tmp/engine-XXXXXX")),
    ok = file:write_file(filename:join(Dir, "agents_of_test.py"), python()),
    Agent = fun(Name) -> #{framework => <<"custom:", Name/binary>>, project => unicode:characters_to_binary(Dir),
                           entrypoint => <<"agents_of_test:", Name/binary>>} end,
    Names = [<<"shout">>, <<"loop">>, <<"deaf">>, <<"broken">>],
    Extra = #{agents => maps:from_list([{N, Agent(N)} || N <- Names]), workers => #{max_per_framework => 2}},
    More = case Case of
               a_disabled_framework_is_refused_with_the_remedy -> #{frameworks => #{<<"custom">> => #{enabled => false}}};
               _ -> #{}
           end,
    ok = engine_test_node:start(Dir, maps:merge(Extra, More)),
    [{dir, Dir} | Config].

end_per_testcase(_Case, Config) ->
    [agent_engine:cancel(<<"default">>, Id, 0, <<>>) || #{task_id := Id} <- execution_rows:views()],
    eventually(fun() -> agent_engine:running() =:= 0 andalso execution_rows:views() =:= [] end),
    Pids = [P || #{host_pid := P} <- framework_adapter_pool:workers(), P > 0],
    engine_test_node:stop(),
    eventually(fun() -> not lists:any(fun alive/1, Pids) end),
    _ = file:del_dir_r(?config(dir, Config)),
    ok.

python() ->
    <<"import time\n"
      "from singularity_agents import agent\n\n"
      "@agent\ndef shout(task):\n    return str(getattr(task, 'description', task)).upper()\n\n"
      "@agent\ndef loop(task):\n    while True:\n        time.sleep(0.01)\n\n"
      "@agent\nasync def deaf(task):\n    import asyncio\n    while True:\n        try:\n            await asyncio.sleep(3600)\n"
      "        except BaseException:\n            pass\n\n"
      "@agent\ndef broken(task):\n    raise ValueError('this agent is broken')\n">>.

%% A zombie is dead.
alive(Pid) ->
    case file:read_file("/proc/" ++ integer_to_list(Pid) ++ "/stat") of
        {ok, Stat} ->
            [_, After] = string:split(Stat, ") ", trailing),
            not lists:member(binary:first(After), "ZX");
        {error, _} -> false
    end.

running_on(Id) ->
    eventually(fun() -> case execution_rows:view(Id) of #{host_pid := P} -> P > 0; none -> false end end, 20000),
    #{host_pid := Pid} = execution_rows:view(Id),
    Pid.

a_function_runs_in_a_worker(_) ->
    {ok, Id} = submit(#{agent_id => <<"shout">>, agent_type => <<>>, description => <<"hello">>}),
    ?assertMatch(#{state := succeeded, output := <<"HELLO">>, executor := <<"custom:shout">>, attempts := 1}, until_ended(Id)),
    %% The worker is kept for the next one.
    {ok, Id2} = submit(#{agent_id => <<"shout">>, agent_type => <<>>, description => <<"again">>, durability => ephemeral}),
    ?assertMatch(#{output := <<"AGAIN">>}, until_ended(Id2)),
    ?assertMatch([#{state := idle}], framework_adapter_pool:workers()).

a_killed_worker_is_followed_by_attempt_2(_) ->
    {ok, Id} = submit(#{agent_id => <<"loop">>, agent_type => <<>>}),
    First = running_on(Id),
    "" = os:cmd("kill -9 " ++ integer_to_list(First)),
    eventually(fun() -> case execution_rows:view(Id) of #{attempt := 2, host_pid := P} -> P > 0; _ -> false end end, 20000),
    {ok, [#{outcome := <<"lost">>, cause := <<"WORKER_CRASHED">>} | _]} = agent_store:read({attempts, Id}),
    {ok, Sentence} = agent_execution:why(Id),
    ?assertMatch({_, _}, binary:match(Sentence, <<"attempt 1 ended lost by WORKER_CRASHED">>)).

a_looping_agent_is_cancelled_with_proof(_) ->
    {ok, Id} = submit(#{agent_id => <<"loop">>, agent_type => <<>>}),
    Pid = running_on(Id),
    {ok, #{witness := Witness, confirmed_dead := true, host_pid := Pid, fenced_at_ms := Fenced}} =
        agent_engine:cancel(<<"default">>, Id, 0, <<"enough">>),
    ?assert(lists:member(Witness, [namespace, descendants])),
    ?assert(Fenced > 0),
    ?assertNot(alive(Pid)),
    ?assertMatch(#{state := cancelled, cancel_requested := true}, task(Id)).

a_deaf_agent_is_killed_after_its_grace(_) ->
    {ok, Id} = submit(#{agent_id => <<"deaf">>, agent_type => <<>>}),
    Pid = running_on(Id),
    {ok, #{witness := Witness, confirmed_dead := true}} = agent_engine:cancel(<<"default">>, Id, 300, <<"enough">>),
    ?assertMatch(#{state := cancelled}, task(Id)),
    %% Two things can happen: it swallowed the cancel and its worker had to go, or its code had not begun yet and the
    %% worker, which said so, is kept.
    case Witness of
        none_needed -> ?assertMatch([#{state := idle}], framework_adapter_pool:workers());
        _ -> ?assertNot(alive(Pid))
    end.

max_attempt_duration_kills_and_tries_again(_) ->
    {ok, Id} = submit(#{agent_id => <<"loop">>, agent_type => <<>>, max_attempt_duration_ms => 700}),
    First = running_on(Id),
    eventually(fun() -> not alive(First) end),
    eventually(fun() -> case agent_store:read({attempts, Id}) of {ok, [#{outcome := <<"timed_out">>} | _]} -> true; _ -> false end end),
    ?assertNotEqual(timed_out, maps:get(state, task(Id))).

a_failure_of_the_agent_is_final(_) ->
    {ok, Id} = submit(#{agent_id => <<"broken">>, agent_type => <<>>}),
    #{state := failed, reason := <<"FRAMEWORK_ERROR">>, message := Message, attempts := 1} = until_ended(Id),
    ?assertMatch({_, _}, binary:match(Message, <<"this agent is broken">>)).

a_disabled_framework_is_refused_with_the_remedy(_) ->
    {error, #{reason := framework_unavailable, message := Message}} = submit(#{agent_id => <<"shout">>, agent_type => <<>>}),
    ?assertMatch({_, _}, binary:match(Message, <<"enabled = true">>)).

tasks_beyond_the_workers_wait_in_the_queue(_) ->
    Ids = [Id || _ <- lists:seq(1, 12), {ok, Id} <- [submit(#{agent_id => <<"shout">>, agent_type => <<>>, description => <<"x">>})]],
    12 = length(Ids),
    [?assertMatch(#{state := succeeded, attempts := 1}, until_ended(Id)) || Id <- Ids],
    ?assert(length(framework_adapter_pool:workers()) =< 2).

%% The driver of a plan, which lives on, has no run that knows the lease.
a_lease_that_crossed_its_cancel_is_given_back(_) ->
    {ok, Driver, _} = plan_driver:init(#{owner => self(), header => #{heartbeat_timeout_ms => 0}}),
    {ok, Agent, _} = plan_route:resolve(#{tenant => <<"default">>, agent_id => <<"shout">>}, <<"custom:shout">>),
    {ok, Ref} = framework_adapter_pool:lease(#{framework => <<"custom:shout">>, agent => Agent, tenant => <<"default">>,
                                               task_id => <<"t">>, owner => self()}),
    {leased, Worker, _} = Leased = leased(Ref),
    {noreply, _} = plan_driver:handle_info({adapter, Ref, Leased}, Driver),
    eventually(fun() -> [idle] =:= [State || #{state := State} <- framework_adapter_pool:workers()] end),
    %% The next one is given the same worker, and nobody has ended for it.
    {ok, Next} = framework_adapter_pool:lease(#{framework => <<"custom:shout">>, agent => Agent, tenant => <<"default">>,
                                                task_id => <<"u">>, owner => self()}),
    ?assertMatch({leased, Worker, _}, leased(Next)).

leased(Ref) ->
    receive {adapter, Ref, Said} -> Said after 20000 -> ct:fail(no_lease) end.

the_pool_answers_the_shell(_) ->
    {ok, #{state := succeeded, output := <<"SAY IT">>}} =
        framework_adapter_pool:execute_task(<<"shout">>, "say it", <<"custom:shout">>, #{}),
    %% The framework's part begins with what the native one said, as a step of the same task.
    {ok, #{state := succeeded, output := Output, task_id := Hybrid}} =
        agent_execution_supervisor:execute_hybrid_task(<<"shout">>, "first", {"second", #{framework => <<"custom:shout">>}}),
    ?assertMatch({_, _}, binary:match(Output, <<"FIRST">>)),
    ?assertMatch({_, _}, binary:match(Output, <<"SECOND">>)),
    ?assertMatch({ok, [#{id := <<"native">>, state := succeeded, executor := <<"native">>},
                       #{id := <<"framework">>, state := succeeded, executor := <<"custom:shout">>, needs := [<<"native">>]}]},
                 agent_execution:plan(Hybrid)),
    ?assertMatch({ok, #{state := succeeded}},
                 agent_execution_supervisor:execute_task(<<"shout">>, unused,
                                                         {hybrid, "first", {"second", #{framework => <<"custom:shout">>}}})),
    %% A native part that fails is the end of it.
    ?assertMatch({ok, #{state := failed}},
                 agent_execution_supervisor:execute_hybrid_task(<<"shout">>, {"x", #{model => <<"echo?fail=401">>}}, "never")),
    ?assertMatch({error, #{reason := framework_unavailable}}, framework_adapter_pool:spawn_agent(researcher, unheard_of)),
    {ok, Id} = framework_adapter_pool:spawn_agent(researcher, langchain),
    ?assertMatch({ok, #{framework := <<"langchain">>}}, agent_registry:get(<<"default">>, Id)).
