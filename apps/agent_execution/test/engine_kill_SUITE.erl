%% @doc Every long-lived process of the engine and below is killed in turn under load: every accepted task ends, once, and
%% nothing is left running that no row knows.
-module(engine_kill_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-include("execution_row.hrl").

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([a_killed_coordinator_is_followed_by_attempt_2/1, a_killed_native_step_is_retried/1,
         a_task_that_kills_its_coordinator_is_poison/1, every_long_lived_process_may_be_killed_under_load/1,
         waiting_tasks_survive_a_killed_queue/1, queued_and_running_tasks_survive_a_restart/1]).

-import(engine_test_node, [submit/1, task/1, until_ended/1, eventually/1, eventually/2]).

%% A row that says RUNNING has an owner again, or is closed, within this: the sweep is every 5 s; the rest is the sampling and a slow
%% machine.
-define(OWNERLESS_MS, 5500).

all() ->
    [a_killed_coordinator_is_followed_by_attempt_2, a_killed_native_step_is_retried,
     a_task_that_kills_its_coordinator_is_poison, waiting_tasks_survive_a_killed_queue,
     queued_and_running_tasks_survive_a_restart, every_long_lived_process_may_be_killed_under_load].

init_per_testcase(Case, Config) ->
    Extra = case Case of
                waiting_tasks_survive_a_killed_queue -> #{agent_execution => #{max_running => 2}};
                queued_and_running_tasks_survive_a_restart -> #{agent_execution => #{max_running => 2}};
                every_long_lived_process_may_be_killed_under_load -> #{agent_execution => #{max_running => 20}};
                _ -> #{}
            end,
    Dir = filename:join(?config(priv_dir, Config), atom_to_list(Case)),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    ok = engine_test_node:start(Dir, Extra),
    [{dir, Dir}, {extra, Extra} | Config].

end_per_testcase(_Case, _Config) ->
    [agent_engine:cancel(<<"default">>, Id, 0, <<>>) || #{task_id := Id} <- execution_rows:views()],
    eventually(fun() -> agent_engine:running() =:= 0 andalso execution_rows:views() =:= [] end, 30000),
    eventually(fun() -> execution_coordinator_sup:count() =:= 0 andalso supervisor:which_children(native_agent_pool) =:= [] end),
    engine_test_node:stop().

kill(Pid) when is_pid(Pid) ->
    Mon = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Mon, _, _, _} -> ok end.

coordinator(Id) ->
    eventually(fun() -> case execution_rows:view(Id) of #{state := running, coordinator := P} -> is_pid(P); _ -> false end end),
    #{coordinator := Pid} = execution_rows:view(Id),
    Pid.

a_killed_coordinator_is_followed_by_attempt_2(_) ->
    {ok, Id} = submit(#{model => <<"slow">>}),
    kill(coordinator(Id)),
    ?assertMatch(#{state := succeeded, attempts := 2}, until_ended(Id)),
    {ok, [#{outcome := <<"lost">>, cause := <<"COORDINATOR_CRASHED">>}, #{outcome := <<"succeeded">>}]} =
        agent_store:read({attempts, Id}).

a_killed_native_step_is_retried(_) ->
    {ok, Id} = submit(#{model => <<"slow">>}),
    _ = coordinator(Id),
    eventually(fun() -> supervisor:which_children(native_agent_pool) =/= [] end),
    [{_, Step, _, _}] = supervisor:which_children(native_agent_pool),
    kill(Step),
    ?assertMatch(#{state := succeeded, attempts := 2}, until_ended(Id)).

a_task_that_kills_its_coordinator_is_poison(_) ->
    {ok, Id} = submit(#{model => <<"hang">>}),
    lists:foreach(fun(N) ->
                      eventually(fun() -> case execution_rows:view(Id) of #{state := running, attempt := A} -> A =:= N; _ -> false end end),
                      kill(coordinator(Id))
                  end, [1, 2, 3, 4, 5]),
    ?assertMatch(#{state := failed, reason := <<"POISON_TASK">>}, until_ended(Id)).

waiting_tasks_survive_a_killed_queue(_) ->
    Ids = [Id || _ <- lists:seq(1, 10), {ok, Id} <- [submit(#{model => <<"slow">>})]],
    kill(whereis(run_queue)),
    [?assertMatch(#{state := succeeded}, until_ended(Id)) || Id <- Ids].

%% The applications end and start as they would on a node: what ran is lost (not counted), what waited waits again.
queued_and_running_tasks_survive_a_restart(Config) ->
    Ids = [Id || _ <- lists:seq(1, 6), {ok, Id} <- [submit(#{model => <<"slow">>})]],
    engine_test_node:stop(),
    ok = engine_test_node:start(?config(dir, Config), ?config(extra, Config)),
    [?assertMatch(#{state := succeeded}, until_ended(Id)) || Id <- Ids],
    ?assert(lists:any(fun(Id) -> maps:get(attempts, task(Id)) =:= 2 end, Ids)).

every_long_lived_process_may_be_killed_under_load(_) ->
    Victims = [performance_monitor, native_agent_pool, run_queue, agent_registry, task_recovery, framework_adapter_manager,
               framework_adapter_pool, execution_coordinator_sup, agent_execution_supervisor, engine_services_sup,
               engine_tables, providers_watcher, store_timer, store_watcher, native_runtime],
    Self = self(),
    Load = spawn_link(fun() -> load(Self, []) end),
    Watch = spawn_link(fun() -> watch_owners(#{}, 0, 0) end),
    Accepted = lists:foldl(fun(Name, N) ->
                               Before = accepted(Load),
                               %% A fault without load proves nothing.
                               eventually(fun() -> accepted(Load) >= Before + 5 end, 20000),
                               ct:pal("killing ~p", [Name]),
                               kill(whereis(Name)),
                               eventually(fun() -> is_pid(whereis(Name)) end, 20000),
                               N + 1
                           end, 0, Victims),
    ?assertEqual(length(Victims), Accepted),
    Before = accepted(Load),
    eventually(fun() -> accepted(Load) >= Before + 5 end, 20000),
    Load ! stop,
    Ids = receive {accepted, All} -> All end,
    ct:pal("~b tasks", [length(Ids)]),
    [eventually(fun() -> engine_test_node:ended(Id) end, 30000) || Id <- Ids],
    States = lists:foldl(fun(Id, Acc) -> maps:update_with(maps:get(state, task(Id)), fun(N) -> N + 1 end, 1, Acc) end, #{}, Ids),
    ct:pal("~p", [States]),
    ?assertEqual(length(Ids), maps:get(succeeded, States, 0)),
    Watch ! {longest, self()},
    {Longest, Seen} = receive {longest, Ms, Rows} -> {Ms, Rows} end,
    ct:pal("of ~b looks at a running row: without an owner for ~b ms at most", [Seen, Longest]),
    ?assert(Seen > 100),
    ?assert(Longest =< ?OWNERLESS_MS).

%% For how long a row said RUNNING, in ms, though no coordinator was there for it.
watch_owners(Since, Longest, Seen) ->
    receive
        {longest, From} -> From ! {longest, Longest, Seen}
    after 10 ->
        Now = erlang:monotonic_time(millisecond),
        Rows = running_rows(),
        Still = maps:from_list([{Id, maps:get(Id, Since, Now)} || Id <- Rows, not has_owner(Id)]),
        watch_owners(Still, lists:max([Longest | [Now - At || At <- maps:values(Still)]]), Seen + length(Rows))
    end.

%% While the store is being started nobody can say.
running_rows() ->
    try agent_store:read({running, agent_store:epoch()}) of
        {ok, Rows} -> [element(1, Row) || Row <- Rows];
        _ -> []
    catch
        _:_ -> []
    end.

has_owner(Id) ->
    try ets:lookup(engine_tables:tasks(), Id) of
        [#row{pid = Pid}] when is_pid(Pid) -> is_process_alive(Pid);
        _ -> false
    catch
        error:badarg -> false
    end.

accepted(Load) ->
    Ref = make_ref(),
    Load ! {count, self(), Ref},
    receive {Ref, N} -> N after 30000 -> error(no_load) end.

%% Submits that are refused or of unknown outcome are sent by real clients again; here only accepted ones count.
load(To, Ids) ->
    receive
        stop -> To ! {accepted, Ids};
        {count, From, Ref} -> From ! {Ref, length(Ids)}, load(To, Ids)
    after 20 ->
        case try submit(#{model => <<"slow">>}) catch Class:Reason -> {refused, {Class, Reason}} end of
            {ok, Id} -> load(To, [Id | Ids]);
            _ -> load(To, Ids)
        end
    end.
