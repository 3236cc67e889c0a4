%% @doc The engine seen from the shell: what runs, where, since when, on which OS process, in which state.
%%
%% All functions read tables and answer at once, however busy the node is; lists are cut at 100 rows on the screen. They
%% print for people and return the same as terms. Tasks may be named by a unique end of their id.
-module(agent_execution).

%% API
-export([tasks/0]).
-export([task/1]).
-export([plan/1]).
-export([workers/0]).
-export([agents/0]).
-export([frameworks/0]).
-export([performance/0]).
-export([budgets/0]).
-export([why/1]).
-export([tree/0]).

%% Lines printed at most.
-define(MAX_LINES, 100).

%% @doc Tasks under way or waiting for a start, oldest first.
-spec tasks() -> [map()].
tasks() ->
    Views = execution_rows:views(),
    print("~-10s ~-10s ~-12s ~-14s ~-10s ~-8s ~s~n", ["TASK", "STATE", "EXECUTOR", "WORKER", "OS PID", "ATTEMPT", "SINCE"],
          [[agent_id:short(Id), S, E, W, integer_to_list(P), integer_to_list(A), age(Since)]
           || #{task_id := Id, state := S, executor := E, worker := W, host_pid := P, attempt := A, since_ms := Since} <- Views]),
    Views.

%% @doc One task, alive or ended, with its attempts.
-spec task(TaskId :: binary() | string()) -> {ok, map()} | {error, agent_error:t()}.
task(Name) ->
    case find(engine_names:binary(Name)) of
        {ok, Id} ->
            case agent_store:read({task, Id}) of
                {ok, Task} ->
                    Attempts = case agent_store:read({attempts, Id}) of {ok, A} -> A; {error, _} -> [] end,
                    {ok, maps:merge(Task, #{attempt_list => Attempts, live => execution_rows:view(maps:get(task_id, Task, Id))})};
                {error, Error} -> {error, engine_errors:from(Error)}
            end;
        {error, Error} -> {error, Error}
    end.

%% @doc The plan of a task as it is now: a line for each step, below what it needs.
-spec plan(TaskId :: binary() | string()) -> {ok, [map()]} | {error, agent_error:t()}.
plan(Name) ->
    case find(engine_names:binary(Name)) of
        {ok, Id} ->
            case agent_store:read({plan, Id}) of
                {ok, Steps} ->
                    Depths = lists:foldl(fun depth/2, #{}, Steps),
                    print("~-40s ~-16s ~-10s ~-8s ~-14s ~s~n", ["STEP", "EXECUTOR", "STATE", "ATTEMPTS", "TOKENS IN/OUT", "COST"],
                          [step(Step, maps:get(maps:get(id, Step), Depths)) || Step <- Steps]),
                    {ok, Steps};
                {error, Error} -> {error, engine_errors:from(Error)}
            end;
        {error, Error} -> {error, Error}
    end.

%% Steps stand behind what they need, unless their writer ordered them otherwise.
-spec depth(map(), #{binary() => non_neg_integer()}) -> #{binary() => non_neg_integer()}.
depth(#{id := Id, needs := Needs}, Depths) ->
    Depths#{Id => lists:max([0 | [maps:get(Need, Depths, 0) + 1 || Need <- Needs]])}.

-spec step(map(), non_neg_integer()) -> [term()].
step(#{id := Id, executor := Executor, attempts := Attempts, input_tokens := In, output_tokens := Out} = Step, Depth) ->
    State = case Step of
                #{skipped := true} -> "skipped";
                #{reason := Reason} when Reason =/= <<>> -> Reason;
                #{state := S} -> S
            end,
    [[lists:duplicate(2 * Depth, $\s), Id], Executor, State, integer_to_list(Attempts), io_lib:format("~b/~b", [In, Out]),
     dollars(maps:get(cost_micros, Step, undefined))].

%% @doc Framework workers: one line each.
-spec workers() -> [map()].
workers() ->
    Workers = framework_adapter_pool:workers(),
    print("~-16s ~-10s ~-10s ~-10s ~-10s ~s~n", ["WORKER", "OS PID", "STATE", "TASK", "RSS", "SINCE"],
          [[maps:get(worker, W), integer_to_list(maps:get(host_pid, W, 0)), maps:get(state, W, starting),
            agent_id:short(maps:get(task_id, W, <<>>)), mib(maps:get(rss_bytes, W, 0)), age(maps:get(started_ms, W, 0))] || W <- Workers]),
    Workers.

%% @doc Agents of the default tenant, with what they have running.
-spec agents() -> [map()].
agents() ->
    Running = [R || #{agent_id := R, slot := S} <- execution_rows:views(), S =/= none],
    Agents = [(maps:without([payload, instructions], A))#{running_tasks => length([x || R <- Running, R =:= Id])}
              || #{id := Id} = A <- agent_registry:list(<<"default">>) ++ [T || #{template := T} <- agent_registry:types()]],
    print("~-24s ~-14s ~-14s ~-12s ~s~n", ["AGENT", "TYPE", "FRAMEWORK", "MODEL", "RUNNING"],
          [[maps:get(id, A), maps:get(agent_type, A), maps:get(framework, A), maps:get(model, A),
            integer_to_list(maps:get(running_tasks, A))] || A <- Agents]),
    Agents.

%% @doc Frameworks with an adapter.
-spec frameworks() -> [map()].
frameworks() ->
    Frameworks = framework_adapter_pool:frameworks(),
    print("~-16s ~-12s ~-8s ~-9s ~s~n", ["FRAMEWORK", "STATE", "WORKERS", "RESTARTS", "REASON"],
          [[maps:get(name, F), maps:get(state, F), integer_to_list(length(maps:get(workers, F, []))),
            integer_to_list(maps:get(restarts, F, 0)), maps:get(unavailable_reason, F, <<>>)] || F <- Frameworks]),
    Frameworks.

%% @doc Ends and latencies of late, by executor and provider.
-spec performance() -> [map()].
performance() ->
    Rows = performance_monitor:summary(),
    print("~-10s ~-20s ~-8s ~-8s ~-8s ~s~n", ["KIND", "NAME", "OK", "FAILED", "P50 ms", "P99 ms"],
          [[maps:get(kind, R), maps:get(name, R) | [integer_to_list(maps:get(K, R)) || K <- [ok, failed, p50_ms, p99_ms]]]
           || R <- Rows]),
    Rows.

%% @doc Accounts of money: limits, what is spent, what is lent to calls.
-spec budgets() -> [map()].
budgets() ->
    Accounts = agent_providers:budgets(),
    print("~-14s ~-36s ~-12s ~-12s ~s~n", ["TENANT", "ACCOUNT", "LIMIT", "SPENT", "LENT"],
          [[maps:get(tenant, A), maps:get(account, A) | [dollars(maps:get(K, A)) || K <- [limit_micros, spent_micros, lent_micros]]]
           || A <- Accounts]),
    Accounts.

%% @doc Why a task is in the state it is in: one sentence.
-spec why(TaskId :: binary() | string()) -> {ok, binary()} | {error, agent_error:t()}.
why(Name) ->
    case task(Name) of
        {ok, Task} ->
            Sentence = execution_why:sentence(Task, erlang:system_time(millisecond)),
            io:put_chars([Sentence, $\n]),
            {ok, Sentence};
        {error, Error} ->
            {error, Error}
    end.

%% @doc The live supervision tree, with the OS processes that hang on it.
-spec tree() -> [term()].
tree() ->
    Tree = engine_tree:tree(),
    io:put_chars(engine_tree:format(Tree)),
    Tree.

%% ---- helpers

%% Live tasks are found by any end of their id, ended ones by the store.
-spec find(binary()) -> {ok, binary()} | {error, agent_error:t()}.
find(Name) ->
    Size = byte_size(Name),
    Ids = [Id || #{task_id := Id} <- execution_rows:views()],
    case [Id || Id <- Ids, byte_size(Id) >= Size, binary:part(Id, byte_size(Id), -Size) =:= Name] of
        [Id] -> {ok, Id};
        [] -> {ok, Name};
        Several -> {error, agent_error:new(invalid_field, ["\"", Name, "\" names several tasks: ",
                                                           lists:join(", ", lists:sublist(Several, 5))])}
    end.

-spec print(string(), [string()], [[term()]]) -> ok.
print(Format, Head, Rows) ->
    io:format(Format, Head),
    lists:foreach(fun(Row) -> io:format(Format, [text(C) || C <- Row]) end, lists:sublist(Rows, ?MAX_LINES)),
    case length(Rows) - ?MAX_LINES of
        More when More > 0 -> io:format("... and ~b more~n", [More]);
        _ -> ok
    end.

-spec text(atom() | iodata()) -> string().
text(A) when is_atom(A) -> atom_to_list(A);
text(T) -> unicode:characters_to_list(T).

-spec dollars(undefined | integer()) -> string().
dollars(undefined) -> "-";
dollars(Micros) -> lists:flatten(io_lib:format("$~b.~6..0b", [Micros div 1000000, abs(Micros rem 1000000)])).

-spec age(integer()) -> string().
age(0) -> "";
age(SinceMs) ->
    S = max(0, erlang:system_time(millisecond) - SinceMs) div 1000,
    lists:flatten(io_lib:format("~2..0b:~2..0b:~2..0b", [S div 3600, S div 60 rem 60, S rem 60])).

-spec mib(non_neg_integer()) -> string().
mib(0) -> "-";
mib(Bytes) -> integer_to_list(Bytes div 1048576) ++ " MiB".
