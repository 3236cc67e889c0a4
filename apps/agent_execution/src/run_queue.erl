%% @doc Who may run now. Slots are counted by class (`native', or a framework), and by tenant where a quota is set.
%%
%% While slots are free and nothing waits, {@link acquire/2} is a counter in a table and asks no process. Otherwise tasks wait
%% here, after their commit; every start goes through {@link run_queue_core}. A waiting task is a row of the task table as
%% well, so that a crash of this process forgets nothing. The window is bounded: beyond it a submit is refused, and what a
%% restart finds beyond it comes in by the poll of the store.
-module(run_queue).
-behaviour(gen_server).

-include("execution_row.hrl").

%% API
-export([start_link/0]).
-export([class/2]).
-export([executor/1]).
-export([acquire/2]).
-export([release/3]).
-export([swap/3]).
-export([room/1]).
-export([enqueue/1]).
-export([remove/1]).
-export([counts/0]).
-export([loads/0]).
-export([recount/0]).
-export([listen/0]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

-export_type([item/0]).

%% Tasks that wait in memory, of all classes, unless configured.
-define(WINDOW, 10000).
%% Native tasks that run at once, unless configured.
-define(MAX_RUNNING, 1000).
%% Workers of a framework, unless configured; as in the pool.
%% Between executor and agent in the name of a class; no framework's name holds it.
-define(OF_AGENT, <<"#">>).
-define(MAX_PER_FRAMEWORK, 4).
%% What is due later than this is not kept in memory, in ms.
-define(HORIZON_MS, 60000).
%% Tasks whose time has come are taken in while fewer than this wait: what is submitted meanwhile does not stand behind thousands of them.
-define(DUE_AHEAD, 200).
%% Where more are due the store is asked again after this, in ms, before its own poll.
-define(DUE_AGAIN_MS, 50).
%% Tasks that wait for a time with a timer of their own; they are no part of the window.
-define(MAX_TIMERS, 1000).
%% A timer of the VM is set for at most so long, in ms; the poll of the store sees the rest.
-define(MAX_TIMER_MS, 3600000).

-type item() :: #{task_id := binary(), tenant := binary(), priority := 0..9, class := binary(),
                  not_before_ms => non_neg_integer(), pause => boolean(), expires_ms => non_neg_integer(), wake => boolean(),
                  fence => non_neg_integer(), create_ms => integer(), agent_id => binary(), agent_type => binary()}.

-record(state, {
    queues = #{} :: #{Class :: binary() => run_queue_core:queue()},
    %% Tasks whose tenant runs as many as it may.
    parked = #{} :: #{Tenant :: binary() => [item()]},
    %% The store will be asked again for what is due: once, however many answers were cut meanwhile.
    looks = false :: boolean(),
    timers = #{} :: #{TaskId :: binary() => {reference(), item()}},
    expiries = #{} :: #{TaskId :: binary() => reference()}
}).

%% @doc Starts the queue.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc What a task counts for: its executor, or its agent on it where the agent's tasks run side by side in a worker. Those have slots of
%% their own, so that other agents of the framework are not let in where no worker could take them.
-spec class(Executor :: binary(), Agent :: map()) -> binary().
class(Executor, Agent) ->
    case framework_adapter_env:concurrency(Executor, Agent) of
        1 -> Executor;
        _ -> <<Executor/binary, ?OF_AGENT/binary, (maps:get(id, Agent, <<>>))/binary>>
    end.

%% @doc The executor of a class.
-spec executor(Class :: binary()) -> binary().
executor(Class) ->
    hd(binary:split(Class, ?OF_AGENT)).

%% @doc Takes a slot at once, or says that the task has to wait.
-spec acquire(Class :: binary(), Tenant :: binary()) -> ok | wait.
acquire(Class, Tenant) ->
    case count(queued) of
        0 -> take(Class, Tenant);
        _ -> wait
    end.

-spec take(binary(), binary()) -> ok | wait.
take(Class, Tenant) ->
    Max = limit(Class),
    case add({running, Class}, 1) of
        N when N > Max -> _ = add({running, Class}, -1), wait;
        _ -> take_tenant(Class, Tenant, quota(Tenant))
    end.

-spec take_tenant(binary(), binary(), pos_integer() | none) -> ok | wait.
take_tenant(_, _, none) ->
    ok;
take_tenant(Class, Tenant, Max) ->
    case add({tenant, Tenant}, 1) of
        N when N > Max -> _ = add({tenant, Tenant}, -1), _ = add({running, Class}, -1), wait;
        _ -> ok
    end.

%% @doc Gives a slot back, after `RanMs' of use.
-spec release(Class :: binary(), Tenant :: binary(), RanMs :: non_neg_integer()) -> ok.
release(Class, Tenant, RanMs) ->
    _ = add({running, Class}, -1),
    _ = case quota(Tenant) of none -> 0; _ -> add({tenant, Tenant}, -1) end,
    case count(queued) of
        0 -> ok;
        _ -> gen_server:cast(?MODULE, {released, Class, Tenant, RanMs})
    end.

%% @doc The task that holds a slot of one class turns out to be of another; it goes on, the limit counts it.
-spec swap(From :: binary(), To :: binary(), Tenant :: binary()) -> ok.
swap(Class, Class, _) ->
    ok;
swap(From, To, Tenant) ->
    _ = add({running, To}, 1),
    _ = add({running, From}, -1),
    gen_server:cast(?MODULE, {released, From, Tenant, 0}).

%% @doc Whether the window has room for one that must wait; asked before the commit.
-spec room(Class :: binary()) -> ok | {error, agent_error:t()}.
room(_Class) ->
    Window = agent_config:get([agent_execution, max_queued], ?WINDOW),
    case count(queued) of
        N when N >= Window ->
            {error, (agent_error:new(queue_full, <<"as many tasks wait as the engine keeps in its queue">>,
                                     #{<<"waiting">> => integer_to_binary(N)}))#{retry_after_ms => 1000}};
        _ ->
            ok
    end.

%% @doc A committed task waits from now on; with `not_before_ms' it comes into the order then, with `pause' after the span until then.
%% One whose time is further away than the horizon is left to the store: a million of them cost no memory, and the poll finds them when
%% they are due.
-spec enqueue(item()) -> ok.
enqueue(#{task_id := Id} = Item) ->
    case maps:get(not_before_ms, Item, 0) - erlang:system_time(millisecond) > ?HORIZON_MS of
        true ->
            true = ets:delete(engine_tables:tasks(), Id),
            ok;
        false ->
            true = ets:insert(engine_tables:tasks(), row(Item)),
            gen_server:cast(?MODULE, {enqueue, Item})
    end.

%% @doc Takes a waiting task out; `error' if it does not wait here (any more).
-spec remove(TaskId :: binary()) -> ok | error.
remove(TaskId) ->
    gen_server:call(?MODULE, {remove, TaskId}).

%% @doc Running and waiting, by class.
-spec counts() -> #{running := #{binary() => non_neg_integer()}, queued := non_neg_integer()}.
counts() ->
    Running = ets:select(engine_tables:slots(), [{{{running, '$1'}, '$2'}, [{'>', '$2', 0}], [{{'$1', '$2'}}]}]),
    #{running => maps:from_list(Running), queued => count(queued)}.

%% @doc Running and waiting tasks against slots, by class; a class without any of both is not there.
-spec loads() -> #{Class :: binary() => float()}.
loads() ->
    Counts = ets:select(engine_tables:slots(), [{{{'$1', '$2'}, '$3'}, [{'>', '$3', 0}], [{{'$1', '$2', '$3'}}]}]),
    lists:foldl(fun({Kind, Class, N}, Acc) when Kind =:= running; Kind =:= queued ->
                        maps:update_with(executor(Class), fun(L) -> L + N / limit(Class) end, N / limit(Class), Acc);
                   (_, Acc) ->
                        Acc
                end, #{}, Counts).

%% @doc Sets the counters from the rows of the table: what a killed process held is free again. The recovery calls it
%% when it has found the same difference twice.
-spec recount() -> ok.
recount() ->
    gen_server:cast(?MODULE, recount).

%% @doc Subscribes to the poll of the store again: it may have been started anew.
-spec listen() -> ok.
listen() ->
    gen_server:cast(?MODULE, subscribe).

%% ---- gen_server

-spec init([]) -> {ok, #state{}, {continue, rebuild}}.
init([]) ->
    {ok, #state{}, {continue, rebuild}}.

-spec handle_continue(rebuild, #state{}) -> {noreply, #state{}}.
handle_continue(rebuild, S) ->
    ok = subscribe(),
    Items = ets:select(engine_tables:tasks(), [{#row{item = '$1', _ = '_'}, [{is_map, '$1'}], ['$1']}]),
    true = ets:insert(engine_tables:slots(), {queued, 0}),
    true = ets:match_delete(engine_tables:slots(), {{queued, '_'}, '_'}),
    {noreply, pump(lists:foldl(fun wait_for/2, S, Items))}.

%% The poll of the store tells us what is due; where the store's application is away, it asks for nobody.
-spec subscribe() -> ok.
subscribe() ->
    case whereis(store_timer) of
        undefined -> ok;
        _ -> store_timer:subscribe()
    end.

-spec handle_call({remove, binary()}, gen_server:from(), #state{}) -> {reply, ok | error, #state{}}.
handle_call({remove, TaskId}, _From, S) ->
    case take_out(TaskId, S) of
        {ok, _, S1} ->
            true = ets:delete(engine_tables:tasks(), TaskId),
            {reply, ok, S1};
        error ->
            {reply, error, S}
    end.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({enqueue, Item}, S) ->
    {noreply, pump(wait_for(Item, S))};
handle_cast({released, Class, Tenant, RanMs}, S) ->
    {noreply, pump(unpark(Tenant, charge(Class, Tenant, RanMs, S)))};
handle_cast(subscribe, S) ->
    ok = subscribe(),
    {noreply, S};
handle_cast(recount, S) ->
    {noreply, pump(recount_slots(S))}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
%% Tasks whose time has come, from the poll of the store. Known ones are left alone.
handle_info({due, TaskIds}, S) when is_list(TaskIds) ->
    {noreply, pump(due(TaskIds, S))};
handle_info(look, S) ->
    ok = store_timer:look(),
    {noreply, S#state{looks = false}};
handle_info({timer, TaskId}, S = #state{timers = Timers}) ->
    case maps:take(TaskId, Timers) of
        {{_, Item}, Timers1} ->
            {noreply, pump(wait_for(over(Item), S#state{timers = Timers1}))};
        error ->
            {noreply, S}
    end;
handle_info({expired, TaskId}, S) ->
    case take_out(TaskId, S) of
        {ok, Item, S1} ->
            _ = execution_coordinator_sup:start_coordinator({expire, Item}),
            {noreply, S1};
        error ->
            {noreply, S}
    end;
handle_info(_, S) ->
    {noreply, S}.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(state, #state{queues = Queues, timers = Timers, parked = Parked}) ->
                     #{queued => maps:map(fun(_, Q) -> run_queue_core:size(Q) end, Queues),
                       timers => map_size(Timers), parked => maps:map(fun(_, L) -> length(L) end, Parked)};
                (_, Other) -> Other
             end, Status).

%% ---- waiting

-spec wait_for(item(), #state{}) -> #state{}.
wait_for(#{task_id := Id} = Item, S = #state{timers = Timers, queues = Queues}) ->
    Now = erlang:system_time(millisecond),
    Class = maps:get(class, Item),
    Queue = maps:get(Class, Queues, run_queue_core:new()),
    case maps:get(not_before_ms, Item, 0) - Now of
        _ when is_map_key(Id, Timers) ->
            S;
        Wait when Wait > 0, map_size(Timers) >= ?MAX_TIMERS ->
            %% Precision is for few: the poll of the store finds it within a second of its time.
            true = ets:delete(engine_tables:tasks(), Id),
            S;
        Wait when Wait > 0 ->
            Timer = erlang:send_after(min(Wait, ?MAX_TIMER_MS), self(), {timer, Id}),
            S#state{timers = Timers#{Id => {Timer, Item}}};
        _ ->
            case run_queue_core:member(Id, Queue) of
                true ->
                    S;
                false ->
                    ok = waits(Class, 1),
                    expiry(Item, Now, S#state{queues = Queues#{Class => run_queue_core:push(Item, Queue)}})
            end
    end.

%% Its timer is over. A pause is over with it, by whatever the time of day is now; a time of day is looked at again.
-spec over(item()) -> item().
over(#{pause := true} = Item) -> Item#{not_before_ms => 0};
over(Item) -> Item.

-spec expiry(item(), integer(), #state{}) -> #state{}.
expiry(#{task_id := Id, expires_ms := At}, Now, S = #state{expiries = Expiries}) when At > 0, not is_map_key(Id, Expiries) ->
    Timer = erlang:send_after(max(0, min(At - Now, ?MAX_TIMER_MS)), self(), {expired, Id}),
    S#state{expiries = Expiries#{Id => Timer}};
expiry(_, _, S) ->
    S.

%% The rest is due still when the store is asked again.
-spec due([binary()], #state{}) -> #state{}.
due(TaskIds, S = #state{timers = Timers}) ->
    New = [Id || Id <- TaskIds, is_map_key(Id, Timers) orelse not ets:member(engine_tables:tasks(), Id)],
    Room = max(0, ?DUE_AHEAD - count(queued)),
    lists:foldl(fun due_one/2, look_again(length(New) > Room, S), lists:sublist(New, Room)).

-spec look_again(boolean(), #state{}) -> #state{}.
look_again(true, S = #state{looks = false}) ->
    _ = erlang:send_after(?DUE_AGAIN_MS, self(), look),
    S#state{looks = true};
look_again(_, S) ->
    S.

-spec due_one(binary(), #state{}) -> #state{}.
due_one(TaskId, S = #state{timers = Timers}) ->
    case Timers of
        #{TaskId := {Timer, Item}} ->
            _ = erlang:cancel_timer(Timer),
            wait_for(Item#{not_before_ms => 0}, S#state{timers = maps:remove(TaskId, Timers)});
        #{} ->
            case ets:member(engine_tables:tasks(), TaskId) of
                true ->
                    S;
                false ->
                    %% Beyond the window or from an earlier run of the node: its coordinator reads the rest.
                    Item = #{task_id => TaskId, tenant => <<"default">>, priority => 4, class => <<"native">>, wake => true},
                    true = ets:insert(engine_tables:tasks(), row(Item)),
                    wait_for(Item, S)
            end
    end.

-spec take_out(binary(), #state{}) -> {ok, item(), #state{}} | error.
take_out(TaskId, S = #state{timers = Timers}) ->
    case maps:take(TaskId, Timers) of
        {{Timer, Item}, Timers1} ->
            _ = erlang:cancel_timer(Timer),
            {ok, Item, S#state{timers = Timers1}};
        error ->
            case ets:lookup(engine_tables:tasks(), TaskId) of
                [#row{item = #{class := Class, tenant := Tenant} = Item}] -> take_out(TaskId, Class, Tenant, Item, S);
                _ -> error
            end
    end.

-spec take_out(binary(), binary(), binary(), item(), #state{}) -> {ok, item(), #state{}} | error.
take_out(TaskId, Class, Tenant, Item, S = #state{queues = Queues, parked = Parked}) ->
    case run_queue_core:remove(TaskId, maps:get(Class, Queues, run_queue_core:new())) of
        {_, Queue} ->
            ok = waits(Class, -1),
            {ok, Item, forget_expiry(TaskId, S#state{queues = Queues#{Class => Queue}})};
        error ->
            Mine = maps:get(Tenant, Parked, []),
            case lists:partition(fun(#{task_id := T}) -> T =:= TaskId end, Mine) of
                {[_], Rest} ->
                    ok = waits(Class, -1),
                    {ok, Item, forget_expiry(TaskId, S#state{parked = Parked#{Tenant => Rest}})};
                {[], _} ->
                    error
            end
    end.

-spec forget_expiry(binary(), #state{}) -> #state{}.
forget_expiry(TaskId, S = #state{expiries = Expiries}) ->
    case maps:take(TaskId, Expiries) of
        {Timer, Expiries1} -> _ = erlang:cancel_timer(Timer), S#state{expiries = Expiries1};
        error -> S
    end.

%% ---- starting

%% Starts what finds a slot, class by class.
-spec pump(#state{}) -> #state{}.
pump(S = #state{queues = Queues}) ->
    case agent_engine:draining() of
        true -> S;
        false -> maps:fold(fun pump_class/3, S, Queues)
    end.

-spec pump_class(binary(), run_queue_core:queue(), #state{}) -> #state{}.
pump_class(Class, _, S = #state{queues = Queues}) ->
    Max = limit(Class),
    case add({running, Class}, 1) of
        N when N > Max ->
            _ = add({running, Class}, -1),
            S;
        _ ->
            case run_queue_core:pop(maps:get(Class, Queues)) of
                empty ->
                    _ = add({running, Class}, -1),
                    S;
                {Item, Queue} ->
                    pump_class(Class, Queue, start(Item, S#state{queues = Queues#{Class => Queue}}))
            end
    end.

%% The slot of the class is taken; the tenant's may not be free.
-spec start(item(), #state{}) -> #state{}.
start(#{task_id := Id, tenant := Tenant, class := Class} = Item, S = #state{parked = Parked}) ->
    case take_tenant(Class, Tenant, quota(Tenant)) of
        wait ->
            S#state{parked = maps:update_with(Tenant, fun(L) -> L ++ [Item] end, [Item], Parked)};
        ok ->
            ok = waits(Class, -1),
            case execution_coordinator_sup:start_coordinator({claim, Item}) of
                {ok, _} -> ok;
                {error, _} -> release(Class, Tenant, 0)
            end,
            forget_expiry(Id, S)
    end.

-spec unpark(binary(), #state{}) -> #state{}.
unpark(Tenant, S = #state{parked = Parked, queues = Queues}) ->
    case maps:take(Tenant, Parked) of
        error ->
            S;
        {Items, Parked1} ->
            Queues1 = lists:foldl(fun(#{class := C} = I, Acc) ->
                                      Acc#{C => run_queue_core:push(I, maps:get(C, Acc, run_queue_core:new()))}
                                  end, Queues, Items),
            S#state{parked = Parked1, queues = Queues1}
    end.

-spec charge(binary(), binary(), non_neg_integer(), #state{}) -> #state{}.
charge(Class, Tenant, RanMs, S = #state{queues = Queues}) ->
    case Queues of
        #{Class := Queue} -> S#state{queues = Queues#{Class => run_queue_core:charge(Tenant, RanMs, Queue)}};
        #{} -> S
    end.

-spec recount_slots(#state{}) -> #state{}.
recount_slots(S) ->
    Held = ets:select(engine_tables:tasks(), [{#row{slot = '$1', tenant = '$2', _ = '_'}, [{is_binary, '$1'}], [{{'$1', '$2'}}]}]),
    Keys = ets:select(engine_tables:slots(), [{{'$1', '_'}, [{is_tuple, '$1'}, {'=/=', {element, 1, '$1'}, queued}], ['$1']}]),
    Fold = fun({Class, Tenant}, Acc) ->
               Inc = fun(Key, M) -> maps:update_with(Key, fun(N) -> N + 1 end, 1, M) end,
               Acc1 = Inc({running, Class}, Acc),
               case quota(Tenant) of none -> Acc1; _ -> Inc({tenant, Tenant}, Acc1) end
           end,
    Counts = lists:foldl(Fold, maps:from_list([{K, 0} || K <- Keys]), Held),
    true = ets:insert(engine_tables:slots(), maps:to_list(Counts)),
    S.

%% ---- counters and limits

-spec add(term(), integer()) -> integer().
add(Key, N) when N < 0 ->
    ets:update_counter(engine_tables:slots(), Key, {2, N, 0, 0}, {Key, 0});
add(Key, N) ->
    ets:update_counter(engine_tables:slots(), Key, {2, N}, {Key, 0}).

%% One more that waits, or one less: of all, and of its class.
-spec waits(binary(), 1 | -1) -> ok.
waits(Class, N) ->
    _ = add(queued, N),
    _ = add({queued, Class}, N),
    ok.

-spec count(term()) -> non_neg_integer().
count(Key) ->
    case ets:lookup(engine_tables:slots(), Key) of
        [{_, N}] -> N;
        [] -> 0
    end.

-spec limit(binary()) -> pos_integer().
limit(<<"native">>) -> agent_config:get([agent_execution, max_running], ?MAX_RUNNING);
limit(Class) ->
    agent_config:get([workers, max_per_framework], ?MAX_PER_FRAMEWORK) *
        case binary:split(Class, ?OF_AGENT) of
            [_] -> 1;
            [Executor, Agent] -> framework_adapter_env:concurrency(Executor, agent_config:get([agents, Agent], #{}))
        end.

-spec quota(binary()) -> pos_integer() | none.
quota(Tenant) ->
    case agent_config:get([tenants, Tenant, max_running], 0) of
        N when is_integer(N), N > 0 -> N;
        _ -> none
    end.

-spec row(item()) -> #row{}.
row(#{task_id := Id, tenant := Tenant} = Item) ->
    #row{task_id = Id, tenant = Tenant, state = queued, item = Item, executor = maps:get(class, Item),
         fence = maps:get(fence, Item, 0), agent_id = maps:get(agent_id, Item, <<>>),
         agent_type = maps:get(agent_type, Item, <<>>),
         create_ms = maps:get(create_ms, Item, 0), since_ms = erlang:system_time(millisecond)}.
