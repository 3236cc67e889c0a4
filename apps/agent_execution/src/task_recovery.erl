%% @doc Sees to it that every RUNNING row has a live coordinator.
%%
%% It monitors every coordinator; one that crashed is followed by a process that closes its attempt as lost and queues the
%% task again. At its start it has the store close the attempts of earlier epochs, and puts what is queued into the run queue,
%% and every 5 s it compares the RUNNING rows of this epoch with the coordinators, so that nothing depends on a message.
-module(task_recovery).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").
-include("execution_row.hrl").

%% API
-export([start_link/0]).
-export([watch/2]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

-define(SWEEP_MS, 5000).
%% The store may not be up yet when the engine starts, in ms.
-define(RECOVER_RETRY_MS, 250).
%% Between two looks whether the queue has room for more of the backlog, in ms.
-define(REFILL_MS, 100).
%% Tasks in the queue below which it has; a page of the store is as long.
-define(LOW_WATER, 5000).

-record(state, {
    watched = #{} :: #{reference() => binary()},
    recovered = false :: boolean(),
    %% The last task of the backlog that was put into the queue.
    behind = <<>> :: binary() | done,
    drift = #{} :: map()
}).

%% @doc Starts the recovery.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc A coordinator runs an attempt from now on.
-spec watch(pid(), TaskId :: binary()) -> ok.
watch(Pid, TaskId) ->
    gen_server:cast(?MODULE, {watch, Pid, TaskId}).

-spec init([]) -> {ok, #state{}, {continue, start}}.
init([]) ->
    {ok, #state{}, {continue, start}}.

-spec handle_continue(start, #state{}) -> {noreply, #state{}}.
handle_continue(start, S) ->
    %% Coordinators live on when this process is started again only if it crashed alone; then they are watched anew.
    Live = ets:select(engine_tables:tasks(), [{#row{task_id = '$1', pid = '$2', item = none, _ = '_'}, [{is_pid, '$2'}],
                                               [{{'$1', '$2'}}]}]),
    S1 = lists:foldl(fun({Id, Pid}, Acc) -> add(Pid, Id, Acc) end, S, Live),
    _ = erlang:send_after(?SWEEP_MS, self(), sweep),
    {noreply, recover(S1)}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(_, _From, S) ->
    {reply, {error, unknown_call}, S}.

-spec handle_cast({watch, pid(), binary()}, #state{}) -> {noreply, #state{}}.
handle_cast({watch, Pid, TaskId}, S) ->
    {noreply, add(Pid, TaskId, S)}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({'DOWN', Mon, process, Pid, Reason}, S = #state{watched = Watched}) ->
    case maps:take(Mon, Watched) of
        {TaskId, Watched1} ->
            ended(TaskId, Pid, Reason),
            {noreply, S#state{watched = Watched1}};
        error ->
            {noreply, S}
    end;
handle_info(recover, S = #state{recovered = false}) ->
    {noreply, recover(S)};
handle_info(refill, S) ->
    S1 = refill(S),
    _ = case S1#state.behind of done -> ok; _ -> erlang:send_after(?REFILL_MS, self(), refill) end,
    {noreply, S1};
handle_info(sweep, S) ->
    _ = erlang:send_after(?SWEEP_MS, self(), sweep),
    {noreply, sweep(S)};
handle_info(_, S) ->
    {noreply, S}.

-spec add(pid(), binary(), #state{}) -> #state{}.
add(Pid, TaskId, S = #state{watched = Watched}) ->
    S#state{watched = Watched#{monitor(process, Pid) => TaskId}}.

%% A coordinator that ended well has taken its row away or handed it to the queue.
-spec ended(binary(), pid(), term()) -> ok.
ended(TaskId, Pid, Reason) ->
    case ets:lookup(engine_tables:tasks(), TaskId) of
        [#row{pid = Pid, item = none} = Row] -> lost(Row, Reason);
        _ -> ok
    end.

-spec lost(#row{}, term()) -> ok.
lost(#row{task_id = Id, fence = Fence, tenant = Tenant, executor = Class, slot = Slot, create_ms = Created} = Row, Reason) ->
    ?LOG_WARNING(#{msg => coordinator_lost, task => Id, attempt => Row#row.attempt, kind => kind(Reason)},
                 #{domain => [agent, execution]}),
    case Slot of none -> ok; _ -> run_queue:release(Slot, Tenant, 0) end,
    true = ets:insert(engine_tables:tasks(), Row#row{slot = none, pid = undefined, state = lost}),
    case Fence of
        0 -> true = ets:delete(engine_tables:tasks(), Id), ok;
        _ -> close(#{task_id => Id, fence => Fence, cause => <<"COORDINATOR_CRASHED">>, tenant => Tenant, class => Class,
                     create_ms => Created})
    end.

-spec close(map()) -> ok.
close(Lost) ->
    case execution_coordinator_sup:start_coordinator({lost, Lost}) of
        {ok, _} -> ok;
        {error, _} -> ok    % the sweep finds it again
    end.

%% Reasons may hold terms of the task: only their kind is logged.
-spec kind(term()) -> atom().
kind(Reason) when is_atom(Reason) -> Reason;
kind(Reason) when is_tuple(Reason), is_atom(element(1, Reason)) -> element(1, Reason);
kind(_) -> other.

%% ---- start

%% Attempts of earlier epochs are closed in portions; what is queued is begun meanwhile.
-spec recover(#state{}) -> #state{}.
recover(S) ->
    case agent_store:write(recover) of
        {ok, more} ->
            self() ! recover,
            refill(S);
        {ok, done} ->
            %% From the beginning: what was closed last may be the oldest.
            self() ! refill,
            %% What an engine before us (in the same node) left running has no row: it is closed now.
            sweep(S#state{recovered = true, behind = <<>>});
        _ ->
            _ = erlang:send_after(?RECOVER_RETRY_MS, self(), recover),
            S
    end.

%% ---- refill

%% The queue keeps a window of the QUEUED rows. What was queued before this start is read page by page, as the window has room.
-spec refill(#state{}) -> #state{}.
refill(S = #state{behind = done}) ->
    S;
refill(S = #state{behind = Behind, recovered = Recovered}) ->
    #{queued := Waiting} = run_queue:counts(),
    case Waiting < ?LOW_WATER andalso agent_store:read({queued, Behind}) of
        {ok, []} when Recovered -> S#state{behind = done};
        {ok, []} -> S;
        {ok, Queued} ->
            lists:foreach(fun enqueue/1, Queued),
            {Last, _} = lists:last(Queued),
            S#state{behind = Last};
        _ -> S
    end.

-spec enqueue({binary(), map()}) -> ok.
enqueue({Id, Header}) ->
    case ets:member(engine_tables:tasks(), Id) of
        true ->
            ok;
        false ->
            Class = case agent_engine:resolve(Header) of
                        {ok, _, #{executor := E}} -> E;
                        {error, _} -> <<"native">>    % its coordinator records why
                    end,
            run_queue:enqueue(#{task_id => Id, tenant => maps:get(tenant, Header, <<"default">>),
                                priority => maps:get(priority, Header, 4), class => Class,
                                create_ms => maps:get(create_ms, Header, 0),
                                agent_id => maps:get(agent_id, Header, <<>>),
                                agent_type => maps:get(agent_type, Header, <<>>)})
    end.

%% ---- sweep

-spec sweep(#state{}) -> #state{}.
sweep(S) ->
    dead_rows(),
    run_queue:listen(),
    S1 = drift(S),
    Epoch = agent_store:epoch(),
    case agent_store:read({running, Epoch}) of
        {ok, Running} ->
            %% A row is there before the task is RUNNING. One that was taken away since we read is fenced off by the close.
            Orphans = [Task || {Id, _} = Task <- Running, not ets:member(engine_tables:tasks(), Id)],
            lists:foreach(fun({Id, Fence}) -> close(#{task_id => Id, fence => Fence, cause => <<"COORDINATOR_CRASHED">>}) end,
                          Orphans);
        _ ->
            ok
    end,
    S1.

%% Coordinators that ended before they could be watched.
-spec dead_rows() -> ok.
dead_rows() ->
    Rows = ets:select(engine_tables:tasks(), [{#row{pid = '$2', item = none, _ = '_'}, [{is_pid, '$2'}], ['$_']}]),
    lists:foreach(fun(#row{pid = Pid, task_id = Id}) ->
                      case is_process_alive(Pid) of
                          true -> ok;
                          false -> ended(Id, Pid, noproc)
                      end
                  end, Rows).

%% A process killed between its slot and its row leaves the slot taken: the same excess twice in a row is one.
-spec drift(#state{}) -> #state{}.
drift(S = #state{drift = Before}) ->
    #{running := Counted} = run_queue:counts(),
    Held = ets:select(engine_tables:tasks(), [{#row{slot = '$1', _ = '_'}, [{is_binary, '$1'}], ['$1']}]),
    Real = lists:foldl(fun(C, Acc) -> maps:update_with(C, fun(N) -> N + 1 end, 1, Acc) end, #{}, Held),
    Excess = maps:filter(fun(_, N) -> N > 0 end, maps:map(fun(C, N) -> N - maps:get(C, Real, 0) end, Counted)),
    case map_size(Excess) > 0 andalso Excess =:= Before of
        true -> run_queue:recount();
        false -> ok
    end,
    S#state{drift = Excess}.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(state, #state{watched = W, recovered = R}) ->
                     #{watched => map_size(W), recovered => R};
                (_, Other) -> Other
             end, Status).
