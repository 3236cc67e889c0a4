%% @doc The process of one task under way: from its submit or claim to its recorded end, or until it waits again.
%%
%% It asks for a slot, writes the submit (or the claim), and then carries out what {@link execution_core} decides: starts the
%% native step or leases a worker, batches events, records the end with the fence. While it lives its row stands in the
%% task table. If it crashes, {@link task_recovery} finds the row, closes the attempt as lost and queues the task again.
%%
%% The states are the phases of the core, and `recording' while the store does not take the end.
-module(execution_coordinator).
-behaviour(gen_statem).

-include_lib("kernel/include/logger.hrl").
-include("execution_row.hrl").

%% API
-export([start_link/1]).
-export([cancel/4]).
-export([entry/1]).

%% gen_statem
-export([init/1, callback_mode/0, handle_event/4, format_status/1]).

-export_type([start/0]).

%% Longest wait of an event for its batch, in ms.
-define(BATCH_MS, 50).
%% The end of an attempt is offered to a store that is away again and again, in ms.
-define(RECORD_RETRY_MS, 250).
%% A claim that found no store comes back, in ms.
-define(CLAIM_RETRY_MS, 1000).

%% How long a task without money waits before it looks again, in ms.
-define(BUDGET_LOOK_MS, 3600000).
%% A provider call may outlive the attempt by so much: our own clock ends the task, and says which limit it was, in ms.
-define(CALL_MARGIN_MS, 2000).
%% Behind the grace of a plan: so long may the ends of all its processes take, in ms.
-define(PLAN_KILL_MS, 5000).
%% A short task ends without a garbage collection: with the default heap there were three.
-define(HEAP_WORDS, 2500).

-type start() :: {submit, #{header := map(), payload := term(), agent := map(), route := map(),
                            cached := framework_execution_cache:ticket(), from := {pid(), reference()}}}
               | {claim, run_queue:item()}
               | {expire, run_queue:item()}
               | {lost, #{task_id := binary(), fence := pos_integer(), cause := binary(), tenant => binary(),
                         class => binary(), priority => 0..9, create_ms => integer()}}.

-record(task, {
    header = #{} :: map(),
    payload = <<>> :: term(),
    agent = #{} :: map(),
    route = #{} :: map(),
    %% The submit has recorded it.
    route_known = false :: boolean(),
    row :: #row{},
    %% What the cache of whole answers said of it.
    cached = none :: framework_execution_cache:ticket(),
    %% What the framework gave while a native step says it again, and the task of that.
    repair = none :: none | {Original :: map(), agent_native:payload()},
    %% Subtasks that its agent has given away.
    nested = execution_nested:new() :: execution_nested:nested(),
    core :: execution_core:core() | undefined,
    batch = execution_events:new() :: execution_events:batch(),
    %% Text of this attempt so far.
    text_bytes = 0 :: non_neg_integer(),
    meter = #{} :: map(),
    started_ms = 0 :: integer(),
    %% What earlier attempts have used of max_duration; time in which none ran does not count.
    ran_ms = 0 :: non_neg_integer(),
    %% For how long the attempt may run, by the shorter of its two limits.
    limit_ms = infinity :: timeout(),
    %% From the submit to the start of this attempt.
    wait_ms = 0 :: non_neg_integer(),
    ref :: reference() | undefined,
    step :: {pid(), reference()} | undefined,
    worker :: {pid(), reference()} | undefined,
    fenced_at_ms = 0 :: non_neg_integer(),
    %% Clock of the task's `heartbeat_timeout'.
    heartbeat :: undefined | reference(),
    waiters = [] :: [{pid(), reference()}],
    pending :: term()
}).

%% @doc Starts a coordinator; it does its work after this has returned.
-spec start_link(start()) -> {ok, pid()}.
start_link(Start) ->
    {ok, proc_lib:spawn_opt(?MODULE, entry, [Start], [link, {min_heap_size, ?HEAP_WORDS}])}.

%% @doc Asks for the end. The caller gets `{Ref, {ok, ProofMap}}' after the commit.
-spec cancel(pid(), reference(), GraceMs :: non_neg_integer(), Why :: execution_core:stop()) -> ok.
cancel(Pid, Ref, GraceMs, Why) ->
    gen_statem:cast(Pid, {cancel, {self(), Ref}, GraceMs, Why}).

%% @private
-spec entry(start()) -> no_return() | ok.
entry({submit, Submit}) -> submit(Submit);
entry({claim, Item}) -> claim(Item);
entry({expire, Item}) -> expire(Item);
entry({lost, Lost}) -> lost(Lost).

%% ---- submit

-spec submit(map()) -> ok.
submit(#{header := Header, payload := Payload, agent := Agent, route := #{executor := Executor} = Route, cached := Cached,
         from := From}) ->
    #{task_id := Id, tenant := Tenant} = Header,
    Class = class(Executor, Agent, Cached),
    Now = now_ms(),
    Later = maps:get(not_before_ms, Header, 0) > Now,
    Slot = case Later orelse run_queue:acquire(Class, Tenant) of ok -> Class; _ -> none end,
    Row = #row{task_id = Id, pid = self(), state = submitting, tenant = Tenant, executor = Executor,
               agent_id = maps:get(id, Agent, <<>>), agent_type = maps:get(agent_type, Agent, <<>>),
               since_ms = Now, create_ms = maps:get(create_ms, Header, Now), slot = Slot},
    %% What waits for its time is a row of the store and takes no room.
    case Slot =:= none andalso not Later andalso run_queue:room(Class) of
        {error, Error} ->
            reply(From, {error, Error});
        _ ->
            case ets:insert_new(engine_tables:tasks(), Row) of
                true ->
                    Task = #task{header = Header, payload = Payload, agent = Agent, route = Route, cached = Cached, row = Row},
                    Options = (execution_namespace:of_agent(Agent))#{run => Slot =/= none, route => explained(Route, Header)},
                    submitted(agent_store:write({submit, Header, Payload, Options}), From, Task);
                false ->
                    %% The id is under way already: ids are made by the engine, so this is one submit sent twice.
                    free(Row),
                    reply(From, {ok, Id})
            end
    end.

%% A task whose answer is at hand needs no worker.
-spec class(binary(), map(), framework_execution_cache:ticket()) -> binary().
class(_, _, {hit, _}) -> <<"native">>;
class(Executor, Agent, _) -> run_queue:class(Executor, Agent).

-spec submitted({ok, term()} | {error, agent_error:t()} | {unknown, term()}, {pid(), reference()}, #task{}) -> ok.
submitted({ok, {created, #{attempt := Attempt, fence := Fence}}}, From, T = #task{row = #row{task_id = Id}}) when Attempt > 0 ->
    ok = joined(T),
    reply(From, {ok, Id}),
    run(Attempt, Fence, 0, T#task{route_known = true});
submitted({ok, {created, _}}, From, T = #task{row = #row{task_id = Id} = Row}) ->
    ok = joined(T),
    free(Row),
    run_queue:enqueue(item(0, T)),
    reply(From, {ok, Id});
submitted({ok, {existing, Other}}, From, #task{row = Row}) ->
    gone(Row),
    reply(From, {ok, Other});
submitted({error, Error}, From, #task{row = Row}) ->
    gone(Row),
    reply(From, {error, engine_errors:from(Error)});
submitted({unknown, _}, From, #task{row = Row}) ->
    gone(Row),
    reply(From, {error, agent_error:new(commit_ambiguous, <<"the outcome of the commit is not known; submit again with the "
                                                            "same request_id">>)}).

%% What was made while its parent ended is cancelled like its siblings.
-spec joined(#task{}) -> ok.
joined(#task{header = Header}) ->
    case execution_family:joined(Header) of
        ok -> ok;
        orphan -> execution_family:cancel(Header)
    end.

-spec reply({pid(), reference()}, term()) -> ok.
reply({Pid, Ref}, Answer) ->
    Pid ! {Ref, Answer},
    ok.

%% ---- claim

-spec claim(run_queue:item()) -> ok.
claim(#{task_id := Id, tenant := Tenant, class := Class} = Item) ->
    Now = now_ms(),
    Row = #row{task_id = Id, pid = self(), state = claiming, tenant = Tenant, since_ms = Now,
               executor = run_queue:executor(Class), slot = Class,
               agent_id = maps:get(agent_id, Item, <<>>), agent_type = maps:get(agent_type, Item, <<>>),
               create_ms = maps:get(create_ms, Item, Now)},
    true = ets:insert(engine_tables:tasks(), Row),
    _ = case maps:get(wake, Item, false) of
            true -> agent_store:write({wake, Id});
            false -> ok
        end,
    case agent_store:write({claim, Id}) of
        {ok, {claimed, #{header := Header, payload := Payload} = Claimed}} ->
            claimed(Claimed,
                    #task{header = Header#{recorded_environments => maps:get(environments, Claimed, []),
                                           alone => maps:get(alone, Claimed, false)}, payload = Payload,
                          ran_ms = maps:get(ran_ms, Claimed, 0),
                          row = Row#row{tenant = maps:get(tenant, Header, Tenant),
                                        create_ms = maps:get(create_ms, Header, Now)}});
        {error, #{reason := Reason}} when Reason =:= wrong_state; Reason =:= task_not_found; Reason =:= attempt_fenced;
                                          Reason =:= task_already_terminal ->
            gone(Row);
        {error, #{reason := store_corrupt} = Error} ->
            %% What it asks for is gone: no attempt could be made of it, however long it waits.
            case end_unclaimed(Id, maps:get(fence, Item, 0), unclaimed(failed, Error, <<"STORE_CORRUPT">>, Item)) of
                {ok, _} -> execution_family:ended(Id), gone(Row);
                _ -> claim_later(Item, Row)
            end;
        _ ->
            claim_later(Item, Row)
    end.

%% The store is away, or does not say: the task is found again by its state.
-spec claim_later(run_queue:item(), #row{}) -> ok.
claim_later(Item, Row) ->
    free(Row),
    run_queue:enqueue(Item#{not_before_ms => now_ms() + ?CLAIM_RETRY_MS, pause => true, wake => true}).

%% What was read from the store comes without its fence; the store says it.
-spec end_unclaimed(binary(), non_neg_integer(), map()) -> {ok, term()} | {error, agent_error:t()} | {unknown, term()}.
end_unclaimed(Id, Fence, End) ->
    case agent_store:write({finish, Id, Fence, End}) of
        {error, #{reason := attempt_fenced, metadata := #{<<"current">> := Current}}} ->
            agent_store:write({finish, Id, binary_to_integer(Current), End});
        Written ->
            Written
    end.

%% The end of a task that has no attempt.
-spec unclaimed(failed | timed_out | cancelled, agent_error:t(), binary(), #{create_ms => integer(), _ => _}) -> map().
unclaimed(State, Error, Cause, Item) ->
    Now = now_ms(),
    #{state => State, error => Error, executor => <<>>, result => undefined,
      metrics => #{queue_ms => max(0, Now - maps:get(create_ms, Item, Now)), execution_ms => 0},
      attempt_outcome => State, cause => Cause, proof => undefined, events => []}.

-spec claimed(map(), #task{}) -> ok.
claimed(#{fence := Fence} = Claimed, T = #task{header = Header, row = Row}) ->
    case execution_family:joined(Header) of
        ok ->
            start_claimed(Claimed, T);
        orphan ->
            _ = agent_store:write({finish, Row#row.task_id, Fence, unclaimed(cancelled, execution_core:cancelled(), <<"TASK_CANCELLED">>,
                                                                            #{create_ms => Row#row.create_ms})}),
            ok = execution_family:closed(Header),
            gone(Row)
    end.

-spec start_claimed(map(), #task{}) -> ok.
start_claimed(#{fence := Fence, attempt := Attempt, lost_count := Used} = Claimed, T = #task{header = Header, row = Row}) ->
    Resolved = case refused(Claimed, Header) of
                   none -> agent_engine:resolve(Header#{recorded => maps:get(executor, Claimed, <<>>)});
                   Refused -> {error, Refused}
               end,
    case Resolved of
        {ok, Agent, #{executor := Executor} = Route} ->
            Class = run_queue:class(Executor, Agent),
            run_queue:swap(Row#row.slot, Class, Row#row.tenant),
            Row1 = Row#row{executor = Executor, slot = Class, agent_id = maps:get(id, Agent, <<>>),
                           agent_type = maps:get(agent_type, Agent, <<>>)},
            Cached = framework_execution_cache:look(T#task.payload, Agent, Executor, Row#row.tenant),
            run(Attempt, Fence, Used, T#task{agent = Agent, route = Route, row = Row1, cached = Cached});
        {error, #{reason := Reason} = Error} ->
            _ = agent_store:write({finish, Row#row.task_id, Fence,
                                   #{state => failed, error => Error, executor => <<>>, result => undefined,
                                     metrics => #{queue_ms => 0, execution_ms => 0}, attempt_outcome => failed,
                                     cause => execution_core:text(Reason), proof => undefined, events => []}}),
            ok = execution_family:closed(Header),
            gone(Row)
    end.

%% Why a task that was claimed may not run again.
-spec refused(map(), map()) -> none | agent_error:t().
refused(#{lost_count := Used} = Claimed, Header) ->
    Max = maps:get(max_attempts, maps:get(retry, Header, #{}), 5),
    case Claimed of
        _ when Used >= Max ->
            agent_error:new(poison_task, <<"its attempts ended what ran them">>, #{<<"attempts">> => integer_to_binary(Used)});
        _ when map_get(budget_denied, Header) ->
            agent_error:new(budget_exhausted, <<"the task's money is spent, and more of it was not approved">>);
        #{unjournaled_tools := [_ | _] = Tools} ->
            case maps:get(allow_replay, Header, false) of
                true -> none;
                false -> execution_core:replay_not_allowed(Tools)
            end;
        #{} ->
            none
    end.

%% max_queue_duration is over before a slot was free.
-spec expire(run_queue:item()) -> ok.
expire(#{task_id := Id} = Item) ->
    Error = agent_error:new(task_timeout, <<"max_queue_duration is over">>, #{<<"limit">> => <<"max_queue_duration">>}),
    _ = end_unclaimed(Id, maps:get(fence, Item, 0), unclaimed(timed_out, Error, <<"TASK_TIMEOUT">>, Item)),
    ok = execution_family:ended(Id),
    true = ets:delete(engine_tables:tasks(), Id),
    ok.

%% The coordinator of an attempt is no more: the attempt is closed, and the task waits again.
-spec lost(map()) -> ok.
lost(#{task_id := Id, fence := Fence, cause := Cause} = Lost) ->
    Event = {worker_lost, #{cause => Cause, detail => <<"the process that ran the task ended">>}},
    case agent_store:write({requeue, Id, Fence, #{outcome => lost, cause => Cause, counts => true, not_before_ms => 0,
                                                  events => [Event]}}) of
        {ok, _} ->
            Tenant = maps:get(tenant, Lost, <<"default">>),
            run_queue:enqueue(#{task_id => Id, tenant => Tenant, priority => maps:get(priority, Lost, 4),
                                class => maps:get(class, Lost, <<"native">>), fence => Fence,
                                create_ms => maps:get(create_ms, Lost, now_ms())});
        {error, #{reason := Reason}} when Reason =:= attempt_fenced; Reason =:= task_not_found; Reason =:= wrong_state;
                                          Reason =:= task_already_terminal ->
            %% It was recorded after all, or somebody else has it.
            true = ets:match_delete(engine_tables:tasks(), #row{task_id = Id, fence = Fence, item = none, _ = '_'}),
            ok;
        _ ->
            receive after ?CLAIM_RETRY_MS -> lost(Lost) end
    end.

-spec item(non_neg_integer(), #task{}) -> run_queue:item().
item(Fence, #task{header = Header, agent = Agent, row = Row}) ->
    #row{task_id = Id, tenant = Tenant, executor = Executor, create_ms = Created} = Row,
    Expires = case {Fence, maps:get(max_queue_duration_ms, Header, 0)} of
                  {0, N} when N > 0 -> Created + N;
                  _ -> 0
              end,
    NotBefore = maps:get(not_before_ms, Header, 0),
    #{task_id => Id, tenant => Tenant, priority => maps:get(priority, Header, 4), create_ms => Created,
      class => run_queue:class(Executor, Agent),
      fence => Fence, expires_ms => Expires, not_before_ms => NotBefore, wake => NotBefore > 0,
      agent_id => Row#row.agent_id, agent_type => Row#row.agent_type}.

%% ---- running

-spec run(pos_integer(), pos_integer(), non_neg_integer(), #task{}) -> no_return().
run(Attempt, Fence, Used, T = #task{header = Header, route = Route, row = Row = #row{task_id = Id, executor = Executor}}) ->
    Now = now_ms(),
    Row1 = Row#row{state = running, attempt = Attempt, fence = Fence, since_ms = Now},
    task_recovery:watch(self(), Id),
    put_row(Row1),
    _ = [agent_store:cast({route, Id, Fence, Said}) || not T#task.route_known, Said <- [explained(Route, Header)], Said =/= undefined],
    T1 = T#task{row = Row1, core = execution_core:new(Header, #{executor => Executor, used => Used}),
                wait_ms = max(0, Now - Row1#row.create_ms), ref = make_ref()},
    {Clocks, T2} = clocks(T1),
    %% An attempt that waits for a worker has not begun; that it waits for ever is for the clock of all attempts to see.
    Early = case Executor of <<"native">> -> Clocks; _ -> lists:keydelete({timeout, attempt}, 1, Clocks) end,
    gen_statem:enter_loop(?MODULE, [], ready, T2, [{next_event, internal, start} | Early]).

%% It runs from now on: the clocks of the attempt and of all attempts together.
-spec clocks(#task{}) -> {[gen_statem:action()], #task{}}.
clocks(T = #task{header = Header}) ->
    Total = left(T#task.ran_ms, maps:get(max_duration_ms, Header, 0)),
    Mine = left(0, maps:get(max_attempt_duration_ms, Header, 0)),
    {[{{timeout, total}, Total, total} || Total =/= infinity] ++ [{{timeout, attempt}, Mine, attempt} || Mine =/= infinity],
     T#task{started_ms = ticks_ms(), limit_ms = min(Total, Mine)}}.

%% Where nothing was chosen there is nothing to explain; an ephemeral task is spared the write.
-spec explained(map(), map()) -> undefined | map().
explained(#{candidates := [_]}, #{durability := ephemeral}) -> undefined;
explained(Route, _) -> Route.

%% What is left of a limit, in ms; 0 as a limit is none.
-spec left(non_neg_integer(), non_neg_integer()) -> timeout().
left(_, 0) -> infinity;
left(Used, Limit) -> max(0, Limit - Used).

%% When model calls of the attempt end at the latest, in ms of the monotonic clock: behind its own end, which has the better reason.
-spec call_deadline(#task{}) -> integer() | infinity.
call_deadline(#task{limit_ms = infinity}) -> infinity;
call_deadline(#task{limit_ms = Limit, started_ms = Started}) -> Started + Limit + ?CALL_MARGIN_MS.

%% The end of the attempt as a time of day, for the agent; 0: none.
-spec time_of_end(#task{}) -> non_neg_integer().
time_of_end(#task{limit_ms = infinity}) -> 0;
time_of_end(T = #task{limit_ms = Limit}) -> now_ms() + max(0, Limit - ran_ms(T)).

%% For how long the attempt has run.
-spec ran_ms(#task{}) -> non_neg_integer().
ran_ms(#task{started_ms = Started}) -> ticks_ms() - Started.

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    handle_event_function.

%% Never called: the process enters the loop by itself, after its commit.
-spec init(term()) -> ignore.
init(_) ->
    ignore.

-spec handle_event(gen_statem:event_type(), term(), atom(), #task{}) -> gen_statem:event_handler_result(atom()).
handle_event(internal, start, _, T = #task{cached = {hit, Result}}) ->
    Meter = (execution_meter:new())#{cache_hit => true},
    decide({result, succeeded, #{result => Result}},
           noted(<<"the answer of an equal task is given again; no worker and no model was asked">>, T#task{meter = Meter}));
handle_event(internal, start, _, T = #task{cached = {effects, Tool}}) ->
    decide(start, noted(not_cached(Tool), T));
handle_event(internal, start, _, T) ->
    decide(start, T);
%% the native step
handle_event(info, {native, Ref, {event, Event}}, _, T = #task{ref = Ref}) ->
    event(Event, alive(T));
handle_event(info, {native, Ref, beat}, _, T = #task{ref = Ref}) ->
    {keep_state, alive(T)};
handle_event(info, {native, Ref, {result, Status, Props, Meter}}, _, T = #task{ref = Ref, repair = {Original, _}, meter = Before}) ->
    {Status1, Props1} = execution_around:repaired(Status, Props, Original),
    decide({result, Status1, Props1}, T#task{meter = execution_meter:more(Meter, Before), repair = none});
handle_event(info, {native, Ref, {result, Status, Props, Meter}}, _, T = #task{ref = Ref}) ->
    decide({result, Status, Props}, T#task{meter = Meter});
handle_event(info, {'DOWN', Mon, process, _, _}, _, T = #task{step = {_, Mon}}) ->
    decide(step_down, T#task{step = undefined});
%% the worker
handle_event(info, {adapter, Ref, {leased, Pid, Info}}, _, T = #task{ref = Ref, row = Row}) ->
    Row1 = Row#row{worker = maps:get(worker, Info, <<>>), host_pid = maps:get(host_pid, Info, 0), waiting = <<>>},
    decide({leased, Info}, put_task_row(Row1, alive(T#task{worker = {Pid, monitor(process, Pid)}})));
handle_event(info, {adapter, Ref, {refused, Error}}, _, T = #task{ref = Ref}) ->
    decide({refused, Error}, T);
handle_event(info, {adapter, Ref, {event, Event}}, _, T = #task{ref = Ref}) ->
    event(Event, alive(count_tool(Event, T)));
handle_event(info, {adapter, Ref, beat}, _, T = #task{ref = Ref}) ->
    {keep_state, alive(T)};
handle_event(info, {adapter, Ref, {usage, Usage}}, _, T = #task{ref = Ref}) ->
    usage(Usage, alive(T));
handle_event(info, {adapter, Ref, {result, Status, Props}}, _, T = #task{ref = Ref}) ->
    unjournaled(Props, T),
    answered(Status, Props, memory(maps:get(rss_bytes, Props, 0), unseen_tools(Props, T)));
handle_event(info, {adapter, Ref, {delegate, Worker, Call, Request}}, working, T = #task{ref = Ref, nested = Nested}) ->
    #row{task_id = Id, attempt = Attempt, fence = Fence} = T#task.row,
    Owned = #{task_id => Id, payload => T#task.payload, attempt => Attempt, fence => Fence, deadline => call_deadline(T), depth => 0},
    {keep_state, alive(T#task{nested = execution_nested:start(Owned, {{Worker, Ref, Call}, Request}, Nested)})};
handle_event(info, {adapter, Ref, {delegate, Worker, Call, Request}}, _, #task{ref = Ref}) ->
    ok = execution_nested:refuse({{Worker, Ref, Call}, Request}),
    keep_state_and_data;
handle_event(info, {adapter, Ref, {lost, Lost}}, _, T = #task{ref = Ref, meter = Meter}) ->
    T1 = memory(maps:get(peak_rss, Lost, 0), T#task{meter = Meter#{cpu_ms => maps:get(cpu_ms, Lost, 0)}}),
    decide({lost, Lost}, T1);
handle_event(info, {adapter, Ref, grace_over}, _, T = #task{ref = Ref}) ->
    decide(grace_over, T);
handle_event(info, {adapter, Ref, {gone, Proof}}, _, T = #task{ref = Ref}) ->
    decide({gone, Proof#{fenced_at_ms => T#task.fenced_at_ms}}, T);
handle_event(info, {'DOWN', Mon, process, _, _}, _, T = #task{worker = {_, Mon}}) ->
    decide(worker_down, T#task{worker = undefined});
%% ends that were asked for
handle_event(cast, {cancel, From, GraceMs, Why}, _, T = #task{waiters = Waiters}) ->
    decide({stop, Why, GraceMs}, T#task{waiters = [From | Waiters]});
handle_event({timeout, Clock}, Clock, _, T) when Clock =:= total; Clock =:= attempt ->
    decide({stop, Clock, 0}, T);
handle_event(info, {timeout, Timer, heartbeat}, _, T = #task{heartbeat = Timer}) ->
    decide({stop, heartbeat, 0}, T);
handle_event({timeout, grace}, grace, _, T) ->
    decide(grace_over, T);
%% clocks of our own
handle_event({timeout, batch}, batch, _, T) ->
    {keep_state, flush(T)};
handle_event(state_timeout, record, recording, T = #task{pending = Pending}) ->
    record(Pending, T);
handle_event(info, Message, _, T = #task{nested = Nested}) ->
    case execution_nested:message(Message, Nested) of
        ignored -> keep_state_and_data;
        {Outs, Nested1} -> of_nested(Outs, T#task{nested = Nested1})
    end;
handle_event(_, _, _, _) ->
    keep_state_and_data.

%% What its subtasks say and use is the task's; its end waits for theirs.
-spec of_nested([execution_nested:out()], #task{}) -> gen_statem:event_handler_result(atom()).
of_nested([{event, Event}], T) ->
    batched(Event, alive(T));
of_nested([beat | Rest], T) ->
    of_nested(Rest, alive(T));
of_nested([{used, Used} | Rest], T = #task{meter = Meter}) ->
    of_nested(Rest, T#task{meter = execution_meter:more(Used, Meter)});
of_nested([], T = #task{pending = {nested, End}, nested = Nested}) ->
    case execution_nested:is_idle(Nested) of
        true -> record(End, T#task{pending = undefined});
        false -> {keep_state, T}
    end;
of_nested([], T) ->
    {keep_state, T}.

%% What a framework gave is held against the schema of the task.
-spec answered(atom(), map(), #task{}) -> gen_statem:event_handler_result(atom()).
answered(succeeded, Props, T = #task{payload = Payload, row = #row{executor = Executor}}) ->
    case execution_around:check(Payload, Props, Executor) of
        {ok, Props1} -> decide({result, succeeded, Props1}, T);
        {repair, Repair} -> decide(misfit, done_with_worker(T#task{repair = {Props, Repair}}));
        {error, Error} -> decide({result, failed, Props#{error => Error}}, T)
    end;
answered(Status, Props, T) ->
    decide({result, Status, Props}, T).

%% It has answered, and serves others.
-spec done_with_worker(#task{}) -> #task{}.
done_with_worker(T = #task{worker = {_, Monitor}}) ->
    true = demonitor(Monitor, [flush]),
    T#task{worker = undefined}.

-spec decide(execution_core:event(), #task{}) -> gen_statem:event_handler_result(atom()).
decide(_, #task{pending = Pending}) when Pending =/= undefined ->
    keep_state_and_data;
decide(Event, T = #task{core = Core}) ->
    {Effects, Core1} = execution_core:step(Event, Core),
    effects(Effects, [], T#task{core = Core1}).

-spec effects([execution_core:effect()], [gen_statem:action()], #task{}) -> gen_statem:event_handler_result(atom()).
effects([], Actions, T = #task{core = Core}) ->
    {next_state, execution_core:phase(Core), T, Actions};
effects([start_native | Rest], Actions, T = #task{payload = Payload, agent = Agent, header = Header}) ->
    {Given, Said} = execution_around:optimize(Payload, Agent, Header, <<"native">>),
    start_step((step_spec(T))#{payload := Given}, Rest, Actions, said(Said, T));
effects([repair | Rest], Actions, T = #task{repair = {_, Payload}}) ->
    {Spec, Said} = execution_around:repair((step_spec(T))#{payload := Payload}),
    start_step(Spec, Rest, Actions, said([Said], T));
effects([{lease, Framework} | Rest], Actions, T = #task{agent = Agent, row = Row}) ->
    {ok, Ref} = framework_adapter_pool:lease(#{framework => Framework, agent => Agent, tenant => Row#row.tenant,
                                               task_id => Row#row.task_id, owner => self(),
                                               alone => maps:get(alone, T#task.header, false),
                                               environments => maps:get(recorded_environments, T#task.header, [])}),
    effects(Rest, Actions, put_task_row(Row#row{waiting = <<"a worker of ", Framework/binary>>}, T#task{ref = Ref}));
effects([cancel_lease | Rest], Actions, T = #task{ref = Ref}) ->
    ok = framework_adapter_pool:cancel_lease(Ref),
    effects(Rest, Actions, T);
effects([{attempt_info, Info} | Rest], Actions, T = #task{row = #row{task_id = Id, fence = Fence, executor = E}}) ->
    _ = agent_store:cast({attempt, Id, Fence, #{worker => maps:get(worker, Info, <<>>), executor => E,
                                                host_pid => maps:get(host_pid, Info, 0),
                                                env_lock_hash => maps:get(env_lock_hash, Info, <<>>),
                                                unjournaled_tools => maps:get(unjournaled_tools, Info, [])}}),
    effects(Rest, Actions, T);
effects([execute | Rest], Actions, T0 = #task{worker = {Pid, _}, header = Header, row = #row{executor = Executor} = Row}) ->
    %% That it waited for its worker counts as waiting.
    {Clocks, T} = clocks(T0#task{wait_ms = T0#task.wait_ms + ran_ms(T0)}),
    {Given, Said} = execution_around:optimize(T#task.payload, T#task.agent, Header, Executor),
    ok = framework_adapter_worker:execute(Pid, T#task.ref, #{
        task_id => Row#row.task_id, payload => Given, tool_limit => execution_around:tool_limit(Executor),
        agent => T#task.agent, attempt => Row#row.attempt,
        fence => Row#row.fence, deadline_ms => time_of_end(T), header => Header,
        stream_text => maps:get(stream_text, Header, true)}),
    effects(Rest, Clocks ++ Actions, said(Said, T));
effects([{event, Event} | Rest], Actions, T) ->
    {_, Batch} = execution_events:add(Event, T#task.batch),
    effects(Rest, [{{timeout, batch}, 0, batch} | Actions], T#task{batch = Batch});
effects([{abort_native, GraceMs} | Rest], Actions, T = #task{step = {Pid, _}}) ->
    native_agent_step:cancel(Pid),
    effects(Rest, [{{timeout, grace}, GraceMs, grace} | Actions], stopping(T));
effects([{abort_plan, GraceMs} | Rest], Actions, T = #task{step = {Pid, _}}) ->
    ok = plan_driver:cancel(Pid, GraceMs),
    effects(Rest, [{{timeout, grace}, GraceMs + ?PLAN_KILL_MS, grace} | Actions], stopping(T));
effects([kill_native | Rest], Actions, T = #task{step = {Pid, _}}) ->
    true = exit(Pid, kill),
    effects(Rest, Actions, T);
effects([{cancel_worker, GraceMs} | Rest], Actions, T = #task{worker = {Pid, _}, nested = Nested}) ->
    ok = framework_adapter_worker:cancel(Pid, T#task.ref, GraceMs),
    effects(Rest, Actions, stopping(T#task{nested = execution_nested:stop(GraceMs, Nested)}));
effects([kill_worker | Rest], Actions, T = #task{worker = {Pid, _}}) ->
    ok = framework_adapter_worker:kill(Pid, T#task.ref),
    effects(Rest, Actions, T);
effects([fence | Rest], Actions, T = #task{row = Row = #row{task_id = Id, fence = Fence}}) ->
    T1 = flush(T),
    case agent_store:write({fence, Id, Fence}) of
        {ok, {ok, New}} -> effects(Rest, Actions, fenced(New, T1));
        {ok, New} when is_integer(New) -> effects(Rest, Actions, fenced(New, T1));
        {error, #{reason := attempt_fenced}} -> stop(T1);
        %% The store does not answer: the kill goes on all the same, our own gate is closed already.
        _ -> effects(Rest, Actions, put_task_row(Row#row{waiting = <<"the store">>}, T1))
    end;
effects([{Kind, End} | _], _, T = #task{nested = Nested}) when Kind =:= finish; Kind =:= requeue; Kind =:= park ->
    %% Always the last effect. Nothing of the attempt runs any more when its end is written.
    case execution_nested:is_idle(Nested) of
        true ->
            record({Kind, End}, T);
        false ->
            {next_state, recording, T#task{pending = {nested, {Kind, End}}, nested = execution_nested:stop(0, Nested)}}
    end.

-spec step_spec(#task{}) -> native_agent_step:spec().
step_spec(T = #task{row = #row{task_id = Id, attempt = Attempt, fence = Fence}}) ->
    #{owner => self(), ref => T#task.ref, task_id => Id, payload => T#task.payload, agent => T#task.agent,
      header => T#task.header, deadline => call_deadline(T), attempt => Attempt, fence => Fence}.

-spec start_step(native_agent_step:spec(), [execution_core:effect()], [gen_statem:action()], #task{}) ->
    gen_statem:event_handler_result(atom()).
start_step(Spec, Rest, Actions, T) ->
    case native_agent_pool:start_step(Spec) of
        {ok, Pid} -> effects(Rest, Actions, T#task{step = {Pid, monitor(process, Pid)}});
        {error, _} -> decide(step_down, T)
    end.

%% The task has shown that it goes on: the clock of its `heartbeat_timeout' starts anew.
-spec alive(#task{}) -> #task{}.
alive(T = #task{header = Header, heartbeat = Timer}) ->
    case maps:get(heartbeat_timeout_ms, Header, 0) of
        0 ->
            T;
        Ms ->
            _ = is_reference(Timer) andalso erlang:cancel_timer(Timer, [{async, true}, {info, false}]),
            T#task{heartbeat = erlang:start_timer(Ms, self(), heartbeat)}
    end.

-spec stopping(#task{}) -> #task{}.
stopping(T = #task{row = Row}) ->
    put_task_row(Row#row{state = cancelling}, T).

-spec fenced(pos_integer(), #task{}) -> #task{}.
fenced(New, T = #task{row = Row}) ->
    put_task_row(Row#row{fence = New}, T#task{fenced_at_ms = now_ms()}).

%% ---- events and meter

-spec event(tuple(), #task{}) -> gen_statem:event_handler_result(atom()).
event({text, Text} = Event, T = #task{text_bytes = Offset, row = #row{task_id = Id, attempt = Attempt}}) ->
    %% Watchers see it now; its batch may take another 50 ms, and a commit.
    agent_store:say(Id, Attempt, Offset, Text),
    batched(Event, T#task{text_bytes = Offset + byte_size(Text)});
event(Event, T) ->
    batched(Event, T).

-spec batched(tuple(), #task{}) -> gen_statem:event_handler_result(atom()).
batched(Event, T = #task{batch = Batch}) ->
    case execution_events:add(Event, Batch) of
        {flush, Batch1} -> {keep_state, flush(T#task{batch = Batch1}), [{{timeout, batch}, infinity, batch}]};
        {later, Batch1} -> {keep_state, T#task{batch = Batch1}, [{{timeout, batch}, ?BATCH_MS, batch}]};
        {waits, Batch1} -> {keep_state, T#task{batch = Batch1}}
    end.

-spec flush(#task{}) -> #task{}.
flush(T = #task{batch = Batch, row = #row{task_id = Id, fence = Fence}}) ->
    {Events, Batch1} = execution_events:take(Batch),
    _ = case Events of [] -> ok; _ -> agent_store:cast({events, Id, Fence, Events}) end,
    T#task{batch = Batch1}.

-spec count_tool(tuple(), #task{}) -> #task{}.
count_tool({tool_call, Call}, T = #task{meter = M, cached = Cached}) ->
    T#task{meter = execution_meter:tool(M), cached = framework_execution_cache:tool(maps:get(name, Call, <<>>), Cached)};
count_tool(_, T) -> T.

%% Nobody saw what these tools did.
-spec unseen_tools(map(), #task{}) -> #task{}.
unseen_tools(#{unjournaled_tools := [Tool | _]}, T = #task{cached = Cached}) ->
    T#task{cached = framework_execution_cache:tool(Tool, Cached)};
unseen_tools(_, T) ->
    T.

%% A line of the cache among the task's events.
-spec noted(binary(), #task{}) -> #task{}.
noted(Message, T) ->
    said([{log, #{level => info, source => <<"task_cache">>, message => Message}}], T).

%% Goes with the next batch.
-spec said([execution_events:event()], #task{}) -> #task{}.
said(Events, T = #task{batch = Batch}) ->
    T#task{batch = lists:foldl(fun(Event, Acc) -> element(2, execution_events:add(Event, Acc)) end, Batch, Events)}.

-spec not_cached(binary()) -> binary().
not_cached(Tool) ->
    <<"the answer is not cached: the tool ", Tool/binary, " may have an effect; declare it replay SAFE if it has none">>.

-spec usage(map(), #task{}) -> gen_statem:event_handler_result(atom()).
usage(Props, T = #task{meter = M}) ->
    events(execution_events:provider_call(Props), T#task{meter = execution_meter:call(Props, M)}).

-spec events([tuple()], #task{}) -> gen_statem:event_handler_result(atom()).
events([Last], T) ->
    event(Last, T);
events([Event | Rest], T = #task{batch = Batch}) ->
    {_, Batch1} = execution_events:add(Event, Batch),
    events(Rest, T#task{batch = Batch1}).

-spec memory(non_neg_integer(), #task{}) -> #task{}.
memory(0, T) -> T;
memory(Bytes, T = #task{meter = M}) -> T#task{meter = M#{memory_bytes => Bytes}}.

-spec unjournaled(map(), #task{}) -> ok.
unjournaled(#{unjournaled_tools := [_ | _] = Tools}, #task{row = Row = #row{task_id = Id, fence = Fence}}) ->
    _ = agent_store:cast({attempt, Id, Fence, #{worker => Row#row.worker, host_pid => Row#row.host_pid,
                                                env_lock_hash => <<>>, executor => Row#row.executor,
                                                unjournaled_tools => Tools}}),
    ok;
unjournaled(_, _) ->
    ok.

-spec metrics(#task{}) -> map().
metrics(T = #task{meter = Meter, wait_ms = Waited}) ->
    %% A task without calls has no cost, an unknown price makes it unknown: either way it is absent.
    Sum = maps:merge(maps:remove(cost_micros, execution_meter:new()), Meter),
    Sum#{queue_ms => Waited, execution_ms => ran_ms(T)}.

%% ---- the end

%% Writes the end of the attempt until the store has taken it, or says that another one holds the task.
-spec record({finish | requeue | park, map()}, #task{}) -> gen_statem:event_handler_result(atom()).
record({finish, Given}, T = #task{row = #row{task_id = Id, fence = Fence}, batch = Batch}) ->
    {Events, _} = execution_events:take(Batch),
    End = execution_nested:proven(Given, T#task.nested),
    Full = maps:merge(#{result => undefined, error => undefined, cause => <<>>, proof => undefined, metrics => metrics(T),
                        events => Events}, End),
    case agent_store:write({finish, Id, Fence, Full}) of
        {ok, _} -> finished(End, T);
        Other -> unrecorded(Other, {finish, End}, T)
    end;
record({park, End}, T = #task{row = #row{task_id = Id, fence = Fence}, batch = Batch}) ->
    {Events, _} = execution_events:take(Batch),
    case agent_store:write({park, Id, Fence, (asked(End))#{ran_ms => ran_ms(T), events => Events}}) of
        {ok, {waiting, _}} -> stop(T);
        %% The answer was quicker than the question.
        {ok, {ready, _}} -> requeued(now_ms(), T);
        Other -> unrecorded(Other, {park, End}, T)
    end;
record({requeue, #{delay := Delay} = End}, T = #task{row = #row{task_id = Id, fence = Fence}, batch = Batch}) ->
    {Events, _} = execution_events:take(Batch),
    NotBefore = case execution_attempt:pause_ms(Delay) of 0 -> 0; Ms -> now_ms() + Ms end,
    Op = {requeue, Id, Fence, (maps:remove(delay, End))#{not_before_ms => NotBefore, ran_ms => ran_ms(T), events => Events}},
    case agent_store:write(Op) of
        {ok, _} -> requeued(NotBefore, T);
        Other -> unrecorded(Other, {requeue, End}, T)
    end.

%% A question of money is looked at again when its window turns, and once an hour: somebody may have raised the limit.
-spec asked(map()) -> map().
asked(#{budget := #{message := Message} = Error}) ->
    Later = now_ms() + ?BUDGET_LOOK_MS,
    Expire = case maps:get(metadata, Error, #{}) of
                 #{<<"resets_ms">> := <<"0">>} -> Later;
                 #{<<"resets_ms">> := Resets} -> min(Later, binary_to_integer(Resets));
                 #{} -> Later
             end,
    #{budget => #{message => Message, expire_ms => Expire}};
asked(End) ->
    End.

-spec unrecorded(term(), {finish | requeue | park, map()}, #task{}) -> gen_statem:event_handler_result(atom()).
unrecorded({error, #{reason := Reason}}, _, T) when Reason =:= attempt_fenced; Reason =:= task_already_terminal;
                                                    Reason =:= task_not_found; Reason =:= wrong_state ->
    %% Normal: a newer attempt holds the task, or an earlier try of ours was recorded after all.
    stop(T);
unrecorded({error, #{reason := Reason} = Error}, Pending, T) when Reason =:= invalid_field; Reason =:= internal ->
    %% Nothing that waiting would heal: the coordinator's end makes the attempt lost, and that is recorded.
    ?LOG_ERROR(#{msg => end_not_recorded, task => T#task.row#row.task_id, end_kind => element(1, Pending),
                 reason => Reason, detail => maps:get(message, Error, <<>>)}, #{domain => [agent, execution]}),
    {stop, end_not_recorded};
unrecorded(_, Pending, T = #task{row = Row}) ->
    {next_state, recording, put_task_row(Row#row{waiting = <<"the store">>}, T#task{pending = Pending}),
     [{state_timeout, ?RECORD_RETRY_MS, record}]}.

-spec finished(map(), #task{}) -> gen_statem:event_handler_result(atom()).
finished(#{state := State} = End, T = #task{cached = Cached, header = Header}) ->
    ok = execution_family:closed(Header),
    ok = learn(End, T),
    ok = case State of succeeded -> framework_execution_cache:keep(maps:get(result, End, undefined), Cached); _ -> ok end,
    Proof = case maps:get(proof, End, undefined) of undefined -> execution_core:no_proof_needed(); P -> P end,
    lists:foreach(fun(From) -> reply(From, {ok, Proof}) end, T#task.waiters),
    stop(T#task{waiters = []}).

%% What is learned of the executor by the end. An answer that is given again says nothing of it.
-spec learn(map(), #task{}) -> ok.
learn(_, #task{cached = {hit, _}}) ->
    ok;
learn(#{state := State} = End, T = #task{row = #row{executor = Executor}}) ->
    performance_monitor:task_ended(Executor, State, ran_ms(T)),
    routed(Executor, End, T).

%% What the router learns. A plan's steps are learned of one by one.
-spec routed(binary(), map(), #task{}) -> ok.
routed(_, _, #task{header = #{has_plan := true}}) ->
    ok;
routed(Executor, End, T = #task{header = Header, meter = Meter}) ->
    execution_learned:ended(Header, Executor, End, #{ms => ran_ms(T), cost => maps:get(cost_micros, Meter, unknown)}).

-spec requeued(non_neg_integer(), #task{}) -> gen_statem:event_handler_result(atom()).
requeued(NotBefore, T = #task{row = Row}) ->
    %% A pause, not a time of day: a clock that is set back meanwhile makes it no longer.
    Item = (item(Row#row.fence, T))#{not_before_ms => NotBefore, pause => true, wake => NotBefore > 0, expires_ms => 0},
    run_queue:enqueue(Item),
    run_queue:release(Row#row.slot, Row#row.tenant, ran_ms(T)),
    lists:foreach(fun(From) -> reply(From, again) end, T#task.waiters),
    {stop, normal}.

-spec stop(#task{}) -> gen_statem:event_handler_result(atom()).
stop(T = #task{row = Row, waiters = Waiters}) ->
    true = ets:delete(engine_tables:tasks(), Row#row.task_id),
    run_queue:release(Row#row.slot, Row#row.tenant, ran_ms(T)),
    lists:foreach(fun(From) -> reply(From, again) end, Waiters),
    {stop, normal}.

%% ---- rows and slots

-spec put_row(#row{}) -> ok.
put_row(Row) ->
    true = ets:insert(engine_tables:tasks(), Row),
    ok.

-spec put_task_row(#row{}, #task{}) -> #task{}.
put_task_row(Row, T) ->
    put_row(Row),
    T#task{row = Row}.

%% Gives the slot back; the row stays or is overwritten by the queue's.
-spec free(#row{}) -> ok.
free(#row{slot = none}) -> ok;
free(#row{slot = Class, tenant = Tenant}) -> run_queue:release(Class, Tenant, 0).

-spec gone(#row{}) -> ok.
gone(Row = #row{task_id = Id}) ->
    true = ets:delete(engine_tables:tasks(), Id),
    free(Row).

%% The time of day, which may be set.
-spec now_ms() -> integer().
now_ms() ->
    erlang:system_time(millisecond).

%% Ticks for spans: nobody sets them.
-spec ticks_ms() -> integer().
ticks_ms() ->
    erlang:monotonic_time(millisecond).

%% Ids and states only: payloads hold prompts.
-spec format_status(gen_statem:format_status()) -> gen_statem:format_status().
format_status(Status) ->
    maps:map(fun(data, #task{row = Row, waiters = W}) -> #{row => Row, waiters => length(W)};
                (queue, Queue) -> {length, length(Queue)};
                (postponed, Queue) -> {length, length(Queue)};
                (log, _) -> [];
                (_, Other) -> Other
             end, Status).
