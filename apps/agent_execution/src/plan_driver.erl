%% @doc A plan under way: drives the plan's machine (`agent_native:plan_step/2'), which does no I/O, and does for it what it asks.
%%
%% To its owner, the task's coordinator, it is a native step: `{native, Ref, {event, Event} | beat}' and exactly one
%% `{native, Ref, {result, Status, Props, Meter}}'. For each run of a step it owns an {@link execution_attempt}, and gives it another life
%% when its retry policy says so. The end of a run is on stable storage before the machine goes on from it.
%%
%% A cancel ends every run, with its grace, and answers with the proofs of all of them in one. If this process dies its native steps end
%% with it and its workers are killed; the next attempt of the task takes up what is kept.
-module(plan_driver).
-behaviour(gen_server).

%% API
-export([start_link/1]).
-export([cancel/2]).

%% gen_server
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% What a failed plan still has under way is given so long to end by itself, in ms.
-define(STOP_GRACE_MS, 1000).
%% A store that is away is asked again, in ms.
-define(STORE_RETRY_MS, 250).
%% A run that waits for a worker or for its next try is no sign of a task that hangs: said so often, in ms.
-define(BEAT_MS, 500).

-record(run, {
    key :: key(),
    %% Of the machine's effect.
    wish :: map(),
    executor = <<>> :: binary(),
    attempt :: undefined | execution_attempt:attempt(),
    agent = #{} :: map(),
    %% Tries of it in this attempt of the task, and those among them that count.
    life = 0 :: non_neg_integer(),
    used = 0 :: non_neg_integer(),
    %% The try before ended with a worker that it shared.
    alone = false :: boolean(),
    meter = execution_meter:new() :: execution_meter:meter(),
    start_ms :: integer(),
    start_tick :: integer(),
    retry :: undefined | reference(),
    limit :: undefined | reference(),
    %% Its own clock has rung.
    overdue = false :: boolean(),
    %% Tools of its tries that nobody may run again.
    tools = [] :: [binary()],
    first_life = 0 :: non_neg_integer()
}).
-record(driver, {
    spec :: native_agent_step:spec(),
    machine :: undefined | reference(),
    opening :: undefined | reference(),
    runs = #{} :: #{key() => #run{}},
    %% Ends that wait for the store.
    commits = #{} :: #{reference() => {key(), tuple()}},
    journals = #{} :: #{key() => [term()]},
    %% Tries of each run so far: an executor that takes over goes on counting, so that no two tries have one name.
    lives = #{} :: #{key() => pos_integer()},
    tools = [] :: [binary()],
    meter = execution_meter:new() :: execution_meter:meter(),
    %% The grace of a cancel that is under way, in ms.
    stopping = none :: none | non_neg_integer(),
    proofs = [] :: [map()],
    %% The owner was told the end.
    done = false :: boolean()
}).
-type key() :: {Step :: non_neg_integer(), Index :: non_neg_integer()}.
-type next() :: {noreply, #driver{}} | {stop, normal, #driver{}}.

%% @doc Starts the plan of a task; it works after this has returned.
-spec start_link(native_agent_step:spec()) -> gen_server:start_ret().
start_link(Spec) ->
    gen_server:start_link(?MODULE, Spec, []).

%% @doc Ends what runs: after the grace it is killed. Said again with a shorter one, that holds.
-spec cancel(pid(), GraceMs :: non_neg_integer()) -> ok.
cancel(Pid, GraceMs) ->
    gen_server:cast(Pid, {cancel, GraceMs}).

-spec init(native_agent_step:spec()) -> {ok, #driver{}, {continue, open}}.
init(#{owner := Owner} = Spec) ->
    _ = monitor(process, Owner),
    _ = [erlang:send_after(?BEAT_MS, self(), beat) || #{header := #{heartbeat_timeout_ms := Ms}} <- [Spec], Ms > 0],
    {ok, #driver{spec = Spec}, {continue, open}}.

-spec handle_continue(open, #driver{}) -> next().
handle_continue(open, D = #driver{spec = #{payload := Payload} = Spec}) ->
    Ref = make_ref(),
    Opened = case native_subsystem:handle(store) of
                 {ok, Store} -> agent_native:plan_open(Store, Ref, Payload, maps:with([fence, attempt], Spec));
                 {error, native_down} -> {error, native_down}
             end,
    case Opened of
        {done, Machine} -> step(go, D#driver{machine = Machine});
        ok -> {noreply, D#driver{opening = Ref}};
        {error, native_down} -> open_again(D);
        {error, Error} -> opened_not(Error, D)
    end.

%% What is kept must be known before anything runs: a store that is away is waited for.
-spec opened_not(agent_error:t(), #driver{}) -> next().
opened_not(#{reason := Reason}, D) when Reason =:= store_unavailable; Reason =:= native_down; Reason =:= overloaded -> open_again(D);
opened_not(Error, D) -> result(failed, #{error => engine_errors:from(Error)}, D).

-spec open_again(#driver{}) -> next().
open_again(D) ->
    _ = erlang:send_after(?STORE_RETRY_MS, self(), open),
    {noreply, D#driver{opening = undefined}}.

-spec handle_call(term(), gen_server:from(), #driver{}) -> {reply, {error, unknown_call}, #driver{}}.
handle_call(_, _, D) ->
    {reply, {error, unknown_call}, D}.

-spec handle_cast({cancel, non_neg_integer()}, #driver{}) -> next().
handle_cast({cancel, GraceMs}, D = #driver{runs = Runs}) ->
    settle(maps:fold(fun(Key, _, Acc) -> stop_run(Key, cancelled, GraceMs, Acc) end, D#driver{stopping = GraceMs}, Runs)).

-spec handle_info(term(), #driver{}) -> next().
handle_info({agent_native, Ref, done, Machine}, D = #driver{opening = Ref}) ->
    step(go, D#driver{opening = undefined, machine = Machine});
handle_info({agent_native, Ref, error, Error}, D = #driver{opening = Ref}) ->
    opened_not(Error, D);
handle_info(open, D) ->
    handle_continue(open, D);
handle_info(beat, D = #driver{runs = Runs}) ->
    _ = erlang:send_after(?BEAT_MS, self(), beat),
    _ = [tell(beat, D) || lists:any(fun waits/1, maps:values(Runs))],
    {noreply, D};
handle_info({agent_native, Ref, Event, What}, D = #driver{commits = Commits}) ->
    case maps:take(Ref, Commits) of
        {Commit, Rest} -> committed(Event, What, Commit, D#driver{commits = Rest});
        error -> {noreply, D}
    end;
handle_info({commit, Commit}, D) ->
    commit(Commit, D);
handle_info({refused, Key, Error}, D = #driver{runs = Runs}) ->
    case Runs of
        #{Key := Run} -> ended({failed, Error}, Run, D);
        #{} -> {noreply, D}
    end;
handle_info({timeout, Timer, {retry, Key}}, D = #driver{runs = Runs}) ->
    case Runs of
        #{Key := #run{retry = Timer} = Run} -> begin_attempt(Run#run{retry = undefined}, D);
        #{} -> {noreply, D}
    end;
handle_info({timeout, Timer, {limit, Key}}, D = #driver{runs = Runs}) ->
    case Runs of
        #{Key := #run{limit = Timer} = Run} -> settle(stop_run(Key, total, 0, D#driver{runs = Runs#{Key := Run#run{overdue = true}}}));
        #{} -> {noreply, D}
    end;
handle_info({grace, Key, Ref}, D = #driver{runs = Runs}) ->
    case Runs of
        #{Key := #run{attempt = A} = Run} when A =/= undefined ->
            case execution_attempt:ref(A) of
                Ref -> outs(execution_attempt:grace_over(A), Run, D);
                _ -> {noreply, D}
            end;
        #{} ->
            {noreply, D}
    end;
handle_info({'DOWN', _, process, Owner, _}, D = #driver{spec = #{owner := Owner}}) ->
    {stop, normal, D};
handle_info(Message, D = #driver{runs = Runs}) ->
    deliver(Message, maps:values(Runs), D).

-spec waits(#run{}) -> boolean().
waits(#run{attempt = undefined}) -> true;
waits(#run{attempt = A}) -> execution_attempt:leasing(A).

%% One of the runs knows the message; there are at most 64.
-spec deliver(term(), [#run{}], #driver{}) -> next().
deliver({adapter, Ref, {leased, Pid, _}}, [], D) ->
    %% For a run that has ended meanwhile: the worker would be ours until the end of the plan.
    ok = framework_adapter_worker:give_back(Pid, Ref),
    {noreply, D};
deliver(_, [], D) ->
    {noreply, D};
deliver(Message, [#run{attempt = undefined} | Rest], D) ->
    deliver(Message, Rest, D);
deliver(Message, [Run = #run{attempt = A} | Rest], D) ->
    case execution_attempt:message(Message, A) of
        ignored -> deliver(Message, Rest, D);
        Outs -> outs(Outs, Run, D)
    end.

%% ---- the machine

-spec step(term(), #driver{}) -> next().
step(_, D = #driver{stopping = Grace}) when Grace =/= none ->
    settle(D);
step(Event, D = #driver{machine = Machine}) ->
    case agent_native:plan_step(Machine, Event) of
        {ok, Effects} -> effects(Effects, D);
        {error, native_down} -> result(failed, #{error => down()}, D);
        {error, Error} -> result(failed, #{error => engine_errors:from(Error)}, D)
    end.

-spec effects([term()], #driver{}) -> next().
effects([], D) ->
    settle(D);
effects([{run, Step, Index, Wish} | Rest], D = #driver{lives = Lives}) ->
    Key = {Step, Index},
    Before = maps:get(Key, Lives, maps:get(life, D#driver.spec, 1) - 1),
    Limit = case Wish of
                #{timeout_ms := Ms} when Ms > 0 -> erlang:start_timer(Ms, self(), {limit, Key});
                #{} -> undefined
            end,
    Run = #run{key = Key, wish = Wish, limit = Limit, life = Before, first_life = Before, start_ms = erlang:system_time(millisecond),
               start_tick = erlang:monotonic_time(millisecond)},
    after_effect(resolved(Run, D), Rest);
effects([{keep, Step, Index, Entry} | Rest], D = #driver{spec = #{task_id := Id, fence := Fence}, journals = Journals}) ->
    Key = {Step, Index},
    Op = {answers, Id, Fence, maps:get(Key, Journals, []) ++ [Entry]},
    after_effect(commit({Key, Op}, D#driver{journals = maps:remove(Key, Journals)}), Rest);
effects([{stop, Step, Index} | Rest], D) ->
    effects(Rest, stop_run({Step, Index}, cancelled, ?STOP_GRACE_MS, D));
effects([{emit, Event} | Rest], D) ->
    tell({event, Event}, D),
    effects(Rest, D);
effects([again | Rest], D) ->
    after_effect(step(go, D), Rest);
effects([{park, Inputs} | _], D) ->
    result(input_requested, #{inputs => Inputs}, D);
effects([{finish, succeeded, _} | _], D = #driver{spec = #{delegated := true}, machine = Machine}) ->
    case agent_native:delegation_ends(Machine) of
        Ends when is_binary(Ends) -> result(succeeded, #{ends => Ends}, D);
        {error, native_down} -> result(failed, #{error => down()}, D);
        {error, Error} -> result(failed, #{error => Error}, D)
    end;
effects([{finish, succeeded, Result} | _], D) ->
    result(succeeded, #{result => Result}, D);
effects([{finish, failed, #{reason := budget_exhausted} = Error} | _], D) ->
    result(failed, #{error => Error}, D);
effects([{finish, failed, Error} | _], D) ->
    %% Its steps have used up their retries: the plan is not tried again as a whole.
    result(failed, #{error => Error, final => true}, D).

-spec after_effect(next(), [term()]) -> next().
after_effect({noreply, D}, Rest) -> effects(Rest, D);
after_effect(Stop, _) -> Stop.

%% ---- runs

-spec resolved(#run{}, #driver{}) -> next().
resolved(Run = #run{key = Key, wish = #{executor := Executor, header := Header}}, D = #driver{runs = Runs}) ->
    case plan_route:resolve(Header, Executor) of
        {ok, Agent, #{executor := Chosen}} ->
            begin_attempt(Run#run{executor = Chosen, agent = Agent}, D);
        {error, Error} ->
            %% Said behind what the machine has still to say now.
            self() ! {refused, Key, engine_errors:from(Error)},
            {noreply, D#driver{runs = Runs#{Key => Run#run{executor = Executor}}}}
    end.

-spec begin_attempt(#run{}, #driver{}) -> next().
begin_attempt(Run = #run{life = Life, used = Used, wish = Wish, executor = Executor, agent = Agent}, D = #driver{spec = Spec}) ->
    #{header := #{tenant := Tenant} = Header, payload := Payload, scope := Scope} = Wish,
    Base = maps:with([task_id, fence, attempt, deadline, depth], Spec),
    Started = execution_attempt:start(Base#{tenant => Tenant, executor => Executor, agent => Agent, header => Header,
                                            payload => Payload, scope => Scope, life => Life + 1, used => Used,
                                            alone => Run#run.alone}),
    outs(Started, Run#run{life = Life + 1}, D).

%% What an attempt says, in order; its end is the last of it.
-spec outs({[execution_attempt:out()], execution_attempt:attempt()}, #run{}, #driver{}) -> next().
outs({Outs, A}, Run = #run{key = Key}, D = #driver{runs = Runs}) ->
    said(Outs, Run#run{attempt = A}, D#driver{runs = Runs#{Key => Run#run{attempt = A}}}).

-spec said([execution_attempt:out()], #run{}, #driver{}) -> next().
said([], _, D) ->
    {noreply, D};
said([{event, {text, _}} | Rest], Run = #run{wish = #{streams := false}}, D) ->
    said(Rest, Run, D);
said([{event, {text, _} = Text} | Rest], Run, D) ->
    tell({event, Text}, D),
    said(Rest, Run, D);
said([{event, Event} | Rest], Run = #run{wish = #{name := Step}}, D) ->
    tell({event, in_step(Step, Event)}, D),
    said(Rest, Run, D);
said([beat | Rest], Run, D) ->
    tell(beat, D),
    said(Rest, Run, D);
said([{worker, Info} | Rest], Run = #run{key = Key, tools = Mine}, D = #driver{spec = Spec, tools = All, runs = Runs}) ->
    %% The row of the attempt says that it had workers, and which tools nobody may run again.
    #{task_id := Id, fence := Fence} = Spec,
    Tools = maps:get(unjournaled_tools, Info, []),
    Known = lists:usort(Tools ++ All),
    %% Of subtasks the worker of the task itself stays the one that is seen.
    Seen = case Spec of
               #{delegated := true} -> #{worker => <<>>, host_pid => 0, executor => <<>>};
               #{} -> #{worker => maps:get(worker, Info, <<>>), host_pid => maps:get(host_pid, Info, 0), executor => <<"native">>}
           end,
    agent_store:cast({attempt, Id, Fence, Seen#{env_lock_hash => maps:get(env_lock_hash, Info, <<>>), unjournaled_tools => Known}}),
    Run1 = Run#run{tools = lists:usort(Tools ++ Mine)},
    said(Rest, Run1, D#driver{tools = Known, runs = Runs#{Key => Run1}});
said([{grace, Ms} | Rest], Run = #run{key = Key, attempt = A}, D) ->
    _ = erlang:send_after(Ms, self(), {grace, Key, execution_attempt:ref(A)}),
    said(Rest, Run, D);
said([{ended, {Kind, End}}], Run = #run{attempt = A, meter = Meter}, D = #driver{meter = Total, proofs = Before}) ->
    ok = execution_attempt:forget(A),
    Proofs = case End of #{proof := #{} = Proof} -> [Proof | Before]; #{} -> Before end,
    Used = execution_meter:add(execution_attempt:meter(A), Meter),
    Sum = execution_meter:add(execution_attempt:meter(A), Total),
    attempt_ended(Kind, End, Run#run{attempt = undefined, meter = Used}, D#driver{meter = Sum, proofs = Proofs}).

%% A subtask's step names its own.
-spec in_step(binary(), tuple()) -> tuple().
in_step(_, {in_step, _, _} = Event) -> Event;
in_step(Step, Event) -> {in_step, Step, Event}.

-spec attempt_ended(finish | requeue | park, map(), #run{}, #driver{}) -> next().
attempt_ended(_, _, #run{key = Key}, D = #driver{stopping = Grace, runs = Runs}) when Grace =/= none ->
    settle(D#driver{runs = maps:remove(Key, Runs)});
attempt_ended(requeue, _, Run = #run{tools = [_ | _] = Tools, wish = #{header := #{allow_replay := false}}}, D) ->
    ended({failed, execution_core:replay_not_allowed(Tools)}, Run, D);
attempt_ended(requeue, #{counts := Counts, delay := Delay} = End, Run = #run{overdue = false}, D = #driver{runs = Runs}) ->
    #run{key = Key, used = Used} = Run,
    Timer = erlang:start_timer(execution_attempt:pause_ms(Delay), self(), {retry, Key}),
    Run1 = Run#run{used = Used + case Counts of true -> 1; false -> 0 end, retry = Timer,
                   alone = maps:get(cause, End, <<>>) =:= execution_core:text(worker_shared)},
    {noreply, D#driver{runs = Runs#{Key := Run1}}};
attempt_ended(finish, #{state := succeeded} = End, Run = #run{key = Key}, D = #driver{journals = Journals}) ->
    ended({succeeded, maps:get(result, End)}, Run, D#driver{journals = Journals#{Key => maps:get(journal, End, [])}});
attempt_ended(_, _, Run = #run{overdue = true}, D) ->
    Error = agent_error:new(task_timeout, <<"the step's timeout is over">>, #{<<"limit">> => <<"timeout">>}),
    ended({failed, Error}, Run, D);
attempt_ended(finish, #{state := cancelled}, Run, D) ->
    ended(stopped, Run, D);
attempt_ended(finish, #{error := Error}, Run, D) ->
    ended({failed, Error}, Run, D);
attempt_ended(park, #{inputs := Inputs}, Run, D) ->
    ended({asked, Inputs}, Run, D);
attempt_ended(park, #{budget := Error}, Run, D) ->
    ended({failed, Error}, Run, D).

-spec ended(term(), #run{}, #driver{}) -> next().
ended(End, Run = #run{key = {Step, Index} = Key, life = Life, meter = Meter, start_ms = Start}, D = #driver{runs = Runs, lives = Lives}) ->
    ok = cancel_timer(Run#run.limit),
    ok = cancel_timer(Run#run.retry),
    Ms = erlang:monotonic_time(millisecond) - Run#run.start_tick,
    _ = [performance_monitor:task_ended(Run#run.executor, State, Ms) || State <- monitored(End)],
    ok = learn(End, Run, #{ms => Ms, cost => maps:get(cost_micros, Meter, unknown)}),
    Report = Meter#{executor => Run#run.executor, attempts => Life - Run#run.first_life, start_ms => Start, end_ms => Start + Ms,
                    unjournaled_tools => not may_run_again(Run)},
    step({ended, Step, Index, End, Report}, D#driver{runs = maps:remove(Key, Runs), lives = Lives#{Key => max(1, Life)}}).

%% What the router learns of the end of a run.
-spec learn(term(), #run{}, #{ms := non_neg_integer(), cost := non_neg_integer() | unknown}) -> ok.
learn({succeeded, _}, #run{executor = Executor, wish = #{header := Header}}, Used) ->
    execution_learned:ended(Header, Executor, #{state => succeeded}, Used);
learn({failed, Error}, #run{executor = Executor, wish = #{header := Header}}, Used) ->
    execution_learned:ended(Header, Executor, #{state => failed, error => Error}, Used);
learn(_, _, _) ->
    ok.

-spec may_run_again(#run{}) -> boolean().
may_run_again(#run{tools = []}) -> true;
may_run_again(#run{wish = #{header := Header}}) -> maps:get(allow_replay, Header, false).

-spec cancel_timer(undefined | reference()) -> ok.
cancel_timer(undefined) -> ok;
cancel_timer(Timer) -> erlang:cancel_timer(Timer, [{async, true}, {info, false}]).

-spec monitored(term()) -> [succeeded | failed].
monitored({succeeded, _}) -> [succeeded];
monitored({failed, _}) -> [failed];
monitored(_) -> [].

-spec stop_run(key(), execution_core:stop(), non_neg_integer(), #driver{}) -> #driver{}.
stop_run(Key, Why, GraceMs, D = #driver{runs = Runs}) ->
    case Runs of
        #{Key := #run{attempt = undefined} = Run} ->
            %% It waits for its next try: nothing runs.
            state(attempt_ended(finish, #{state => cancelled, error => execution_core:cancelled()}, Run, D));
        #{Key := #run{attempt = A} = Run} ->
            state(outs(execution_attempt:stop(Why, GraceMs, A), Run, D));
        #{} ->
            D
    end.

%% The caller looks itself whether that was the end: {@link settle/1}.
-spec state(next()) -> #driver{}.
state({noreply, D}) -> D;
state({stop, normal, D}) -> D.

%% ---- what is kept

-spec commit({key(), tuple()}, #driver{}) -> next().
commit({_, Op} = Commit, D = #driver{commits = Commits}) ->
    case agent_store:start(Op) of
        {ok, Ref} -> {noreply, D#driver{commits = Commits#{Ref => Commit}}};
        {done, _} -> committed(done, ok, Commit, D);
        {error, Error} -> committed(error, Error, Commit, D)
    end.

-spec committed(atom(), term(), {key(), tuple()}, #driver{}) -> next().
committed(done, _, {{Step, Index}, _}, D) ->
    step({kept, Step, Index}, D);
committed(error, #{reason := Reason} = Error, _, D) when Reason =:= attempt_fenced; Reason =:= task_not_found;
                                                         Reason =:= wrong_state; Reason =:= invalid_field; Reason =:= internal ->
    result(failed, #{error => Error, final => true}, D);
committed(_, _, Commit, D) ->
    %% Written twice is written once.
    _ = erlang:send_after(?STORE_RETRY_MS, self(), {commit, Commit}),
    {noreply, D}.

%% ---- the end

%% A cancel is over when nothing runs any more.
-spec settle(#driver{}) -> next().
settle(D = #driver{done = true}) ->
    {stop, normal, D};
settle(D = #driver{stopping = Grace, runs = Runs, proofs = Proofs}) when Grace =/= none, map_size(Runs) =:= 0 ->
    result(cancelled, #{error => execution_core:cancelled(), proof => cancellation_proof:all(Proofs)}, D);
settle(D) ->
    {noreply, D}.

-spec result(succeeded | failed | cancelled | input_requested, map(), #driver{}) -> {stop, normal, #driver{}}.
result(_, _, D = #driver{done = true}) ->
    {stop, normal, D};
result(Status, Props, D = #driver{meter = Meter}) ->
    tell({result, Status, Props, Meter}, D),
    {stop, normal, D#driver{done = true}}.

-spec tell(term(), #driver{}) -> ok.
tell(What, #driver{spec = #{owner := Owner, ref := Ref}}) ->
    Owner ! {native, Ref, What},
    ok.

-spec down() -> agent_error:t().
down() ->
    agent_error:new(native_down, <<"the native library is not there">>).

%% Names and counts only: what the steps hold are prompts.
-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(state, #driver{spec = #{task_id := Id}, runs = Runs}) -> #{task_id => Id, runs => maps:keys(Runs)};
                (message, _) -> hidden;
                (log, _) -> [];
                (_, Other) -> Other
             end, Status).
