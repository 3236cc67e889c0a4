%% @doc Counts how tasks end and how long they take, by executor and by provider: counters that whoever measures
%% updates by itself. Views read them; this process only makes the counters, and halves them every minute so that they speak of
%% late. It fades the router's {@link execution_history} as well, more slowly, and keeps that in a file.
-module(performance_monitor).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([task_ended/3]).
-export([provider_called/2]).
-export([summary/0]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

%% Buckets of the histogram: bucket N holds latencies below 2^N ms.
-define(BUCKETS, 24).
-define(DECAY_MS, 60000).
%% After so long an end weighs half as much for the router, in ms, unless configured.
-define(HALF_LIFE_MS, 3600000).
%% Kinds of keys are executors (configured names) and providers: far fewer than this.
-define(MAX_KEYS, 1000).

%% @doc Starts the monitor.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc A task of an executor has ended.
-spec task_ended(Executor :: binary(), State :: atom(), Ms :: non_neg_integer()) -> ok.
task_ended(Executor, State, Ms) ->
    record({executor, Executor}, State =:= succeeded, Ms).

%% @doc A provider call has ended well.
-spec provider_called(Provider :: binary(), Ms :: non_neg_integer()) -> ok.
provider_called(Provider, Ms) ->
    record({provider, Provider}, true, Ms).

%% @doc For people: each executor and provider with ends and median and 99th percentile (upper bounds, in ms).
-spec summary() -> [map()].
summary() ->
    [#{kind => Kind, name => Name, ok => counters:get(Ref, 1), failed => counters:get(Ref, 2),
       p50_ms => percentile(0.5, Ref), p99_ms => percentile(0.99, Ref)}
     || {{Kind, Name}, Ref} <- lists:sort(ets:tab2list(engine_tables:performance()))].

-spec record({executor | provider, binary()}, boolean(), non_neg_integer()) -> ok.
record(Key, Ok, Ms) ->
    case ets:lookup(engine_tables:performance(), Key) of
        [{_, Ref}] ->
            counters:add(Ref, case Ok of true -> 1; false -> 2 end, 1),
            counters:add(Ref, 3 + bucket(Ms), 1);
        [] ->
            gen_server:cast(?MODULE, {new, Key, Ok, Ms})
    end.

-spec bucket(non_neg_integer()) -> 0..?BUCKETS.
bucket(Ms) -> bucket(Ms, 0).

-spec bucket(non_neg_integer(), non_neg_integer()) -> 0..?BUCKETS.
bucket(0, N) -> N;
bucket(_, ?BUCKETS) -> ?BUCKETS;
bucket(Ms, N) -> bucket(Ms bsr 1, N + 1).

-spec percentile(float(), counters:counters_ref()) -> non_neg_integer().
percentile(Part, Ref) ->
    Counts = [counters:get(Ref, 3 + N) || N <- lists:seq(0, ?BUCKETS)],
    percentile(Part * lists:sum(Counts), 0, Counts).

-spec percentile(float(), non_neg_integer(), [non_neg_integer()]) -> non_neg_integer().
percentile(_, _, []) -> 0;
percentile(Left, N, [Count | _]) when Count >= Left -> case N of 0 -> 0; _ -> 1 bsl N end;
percentile(Left, N, [Count | Rest]) -> percentile(Left - Count, N + 1, Rest).

-spec init([]) -> {ok, none, {continue, load}}.
init([]) ->
    %% So that a stop of the node keeps the history.
    _ = process_flag(trap_exit, true),
    _ = erlang:send_after(?DECAY_MS, self(), decay),
    {ok, none, {continue, load}}.

-spec handle_continue(load, none) -> {noreply, none}.
handle_continue(load, State) ->
    ok = execution_history_file:load(),
    {noreply, State}.

-spec handle_call(term(), gen_server:from(), none) -> {reply, {error, unknown_call}, none}.
handle_call(_, _From, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast({new, {executor | provider, binary()}, boolean(), non_neg_integer()}, none) -> {noreply, none}.
handle_cast({new, Key, Ok, Ms}, State) ->
    Table = engine_tables:performance(),
    case ets:info(Table, size) < ?MAX_KEYS of
        true -> _ = ets:insert_new(Table, {Key, counters:new(3 + ?BUCKETS, [write_concurrency])}), record(Key, Ok, Ms);
        false -> ok
    end,
    {noreply, State}.

-spec handle_info(term(), none) -> {noreply, none}.
handle_info(decay, State) ->
    _ = erlang:send_after(?DECAY_MS, self(), decay),
    lists:foreach(fun({_, Ref}) ->
                      [counters:sub(Ref, N, counters:get(Ref, N) div 2) || N <- lists:seq(1, 3 + ?BUCKETS)]
                  end, ets:tab2list(engine_tables:performance())),
    HalfLife = agent_config:get([agent_execution, history_half_life_ms], ?HALF_LIFE_MS),
    ok = execution_history:fade(math:pow(0.5, ?DECAY_MS / max(1, HalfLife))),
    ok = execution_world:forget(),
    ok = execution_history_file:save(),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

-spec terminate(term(), none) -> ok.
terminate(_, _) ->
    execution_history_file:save().

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
