%% @doc What became of tasks, by task type and executor: how many ended well, how long they took, what they cost.
%%
%% Whoever ends a task adds to counters in a table; no process is asked. {@link performance_monitor} fades the counters, so that an
%% end of long ago weighs less, and keeps them in a file, so that a node that starts again knows what it knew. The router reads
%% them, a few times a second, through {@link execution_world}.
-module(execution_history).

%% API
-export([add/4]).
-export([of_type/1]).
-export([knows/1]).
-export([fade/1]).
-export([export/0]).
-export([import/1]).

-export_type([row/0]).

%% Counters: ends well, ends badly, ms of all ends, ends of known cost, micro-dollars of these.
-define(WELL, 1).
-define(BADLY, 2).
-define(MS, 3).
-define(PRICED, 4).
-define(COST, 5).
-define(SIZE, 5).
%% An end counts as so many, so that fading has digits to take away.
-define(UNIT, 1000).
%% Pairs of a task type and an executor; task types are text of clients, and what comes beyond these is not learned about.
-define(MAX_PAIRS, 2000).
%% A pair of less than this many ends is forgotten, in units.
-define(FORGOTTEN, 50).

-type row() :: #{samples := float(), success := float(), ms := float(), cost := float() | unknown}.
%% `samples': ends, each by what is left of it; `success': 0 to 1; `ms' and `cost' (micro-dollars): the mean of an end.

%% @doc A task has ended. `Cost' in micro-dollars.
-spec add(TaskType :: binary(), Executor :: binary(), Well :: boolean(),
          #{ms := non_neg_integer(), cost := non_neg_integer() | unknown}) -> ok.
add(Type, Executor, Well, #{ms := Ms, cost := Cost}) ->
    case counters(Type, Executor) of
        {ok, Ref} ->
            ok = counters:add(Ref, case Well of true -> ?WELL; false -> ?BADLY end, ?UNIT),
            ok = counters:add(Ref, ?MS, Ms * ?UNIT),
            _ = [begin ok = counters:add(Ref, ?PRICED, ?UNIT), ok = counters:add(Ref, ?COST, Cost * ?UNIT) end || is_integer(Cost)],
            ok;
        full ->
            ok
    end.

-spec counters(binary(), binary()) -> {ok, counters:counters_ref()} | full.
counters(Type, Executor) ->
    Table = engine_tables:history(),
    Key = {Type, Executor},
    case ets:lookup(Table, Key) of
        [{_, Ref}] ->
            {ok, Ref};
        [] ->
            case ets:info(Table, size) < ?MAX_PAIRS of
                true ->
                    %% Two that come first at once: one of them made it.
                    _ = ets:insert_new(Table, {Key, counters:new(?SIZE, [atomics])}),
                    counters(Type, Executor);
                false ->
                    full
            end
    end.

%% @doc Whether there is anything about a type.
-spec knows(TaskType :: binary()) -> boolean().
knows(Type) ->
    %% The table is ordered: the first key at or behind the type's smallest one.
    case ets:next(engine_tables:history(), {Type, <<>>}) of
        {Type, _} -> true;
        _ -> false
    end.

%% @doc What there is about a type, by executor.
-spec of_type(TaskType :: binary()) -> #{Executor :: binary() => row()}.
of_type(Type) ->
    Rows = ets:select(engine_tables:history(), [{{{Type, '$1'}, '$2'}, [], [{{'$1', '$2'}}]}]),
    maps:from_list([{E, row(Ref)} || {E, Ref} <- Rows, ends(Ref) > 0]).

-spec row(counters:counters_ref()) -> row().
row(Ref) ->
    Ends = ends(Ref),
    Priced = get(Ref, ?PRICED),
    #{samples => Ends / ?UNIT, success => get(Ref, ?WELL) / Ends, ms => get(Ref, ?MS) / Ends,
      cost => case Priced of 0 -> unknown; _ -> get(Ref, ?COST) / Priced end}.

-spec ends(counters:counters_ref()) -> non_neg_integer().
ends(Ref) -> get(Ref, ?WELL) + get(Ref, ?BADLY).

-spec get(counters:counters_ref(), 1..?SIZE) -> non_neg_integer().
get(Ref, N) -> max(0, counters:get(Ref, N)).

%% @doc Leaves this part of everything, and forgets what is next to nothing.
-spec fade(Part :: float()) -> ok.
fade(Part) ->
    lists:foreach(fun({Key, Ref}) ->
                      [counters:sub(Ref, N, trunc(get(Ref, N) * (1.0 - Part))) || N <- lists:seq(1, ?SIZE)],
                      _ = [ets:delete(engine_tables:history(), Key) || ends(Ref) < ?FORGOTTEN]
                  end, ets:tab2list(engine_tables:history())).

%% @doc All of it, for a file.
-spec export() -> [{{binary(), binary()}, [non_neg_integer()]}].
export() ->
    [{Key, [get(Ref, N) || N <- lists:seq(1, ?SIZE)]} || {Key, Ref} <- ets:tab2list(engine_tables:history())].

%% @doc What was exported; what has been counted since is left alone, and what is no such list is not taken.
-spec import(term()) -> ok | {error, malformed}.
import(Rows) when is_list(Rows), length(Rows) =< ?MAX_PAIRS ->
    case lists:all(fun valid/1, Rows) of
        true -> lists:foreach(fun restore/1, Rows);
        false -> {error, malformed}
    end;
import(_) ->
    {error, malformed}.

-spec valid(term()) -> boolean().
valid({{Type, Executor}, Counts}) when is_binary(Type), is_binary(Executor), is_list(Counts), length(Counts) =:= ?SIZE ->
    lists:all(fun(N) -> is_integer(N) andalso N >= 0 andalso N < 1 bsl 60 end, Counts);
valid(_) ->
    false.

-spec restore({{binary(), binary()}, [non_neg_integer()]}) -> ok.
restore({Key, Counts}) ->
    Ref = counters:new(?SIZE, [atomics]),
    _ = [ok = counters:put(Ref, N, C) || {N, C} <- lists:zip(lists:seq(1, ?SIZE), Counts)],
    _ = ets:insert_new(engine_tables:history(), {Key, Ref}),
    ok.
