%% @doc One attempt of a step of a plan: carries out what {@link execution_core} decides, as {@link execution_coordinator} does for a
%% whole task. A functional object: {@link plan_driver} owns it, gives it the messages that come for it, and does what it says.
%%
%% A step has no fence of its own: its calls end with the gate of its worker, and the task's fence stays for its siblings.
-module(execution_attempt).

-export([start/1]).
-export([message/2]).
-export([stop/3]).
-export([grace_over/1]).
-export([ref/1]).
-export([meter/1]).
-export([leasing/1]).
-export([forget/1]).
-export([pause_ms/1]).

-export_type([spec/0, attempt/0, out/0]).

-type spec() :: #{task_id := binary(), tenant := binary(), executor := binary(), agent := map(), header := map(), payload := term(),
                  attempt := pos_integer(), fence := pos_integer(), scope := binary(), life := pos_integer(),
                  used := non_neg_integer(), deadline := integer() | infinity, depth => non_neg_integer(),
                  %% The try before ended with a worker that it shared.
                  alone => boolean()}.
-type out() :: {event, tuple()}
             | beat
             | {worker, map()}
             | {grace, Ms :: non_neg_integer()}
             | {ended, {finish | requeue | park, map()}}.
%% What the owner does: tell the watchers, or that it goes on, note the worker and its tools, call {@link grace_over/1} after so long,
%% or take the end.

-record(attempt, {
    ref :: reference(),
    spec :: spec(),
    core :: execution_core:core(),
    %% What the framework gave while a native step says it again, and the task of that.
    repair = none :: none | {Original :: map(), agent_native:payload()},
    nested = execution_nested:new() :: execution_nested:nested(),
    %% Its end waits for that of its subtasks.
    ending = none :: none | {finish | requeue | park, map()},
    meter = execution_meter:new() :: execution_meter:meter(),
    step :: undefined | {pid(), reference()},
    worker :: undefined | {pid(), reference()}
}).
-opaque attempt() :: #attempt{}.

%% @doc Starts it; messages come to the caller with {@link ref/1}, and the `DOWN' of what runs.
-spec start(spec()) -> {[out()], attempt()}.
start(#{header := Header, executor := Executor, used := Used} = Spec) ->
    Core = execution_core:new(Header#{has_plan => false}, #{executor => Executor, used => Used}),
    decide(start, #attempt{ref = make_ref(), spec = Spec, core = Core}).

%% @doc Names its messages: `{native | adapter, Ref, What}'.
-spec ref(attempt()) -> reference().
ref(#attempt{ref = Ref}) ->
    Ref.

%% @doc What it has used so far.
-spec meter(attempt()) -> execution_meter:meter().
meter(#attempt{meter = Meter}) ->
    Meter.

%% @doc Whether it waits for a worker.
-spec leasing(attempt()) -> boolean().
leasing(#attempt{core = Core}) ->
    execution_core:phase(Core) =:= leasing.

%% @doc A message that may be for it.
-spec message(term(), attempt()) -> ignored | {[out()], attempt()}.
message({native, Ref, {event, Event}}, A = #attempt{ref = Ref}) ->
    {[{event, Event}], A};
message({native, Ref, {result, Status, Props, Meter}}, A = #attempt{ref = Ref, repair = {Original, _}, meter = Before}) ->
    {Status1, Props1} = execution_around:repaired(Status, Props, Original),
    decide({result, Status1, Props1}, A#attempt{meter = execution_meter:more(Meter, Before), repair = none});
message({native, Ref, {result, Status, Props, Meter}}, A = #attempt{ref = Ref}) ->
    decide({result, Status, Props}, A#attempt{meter = Meter});
message({'DOWN', Mon, process, _, _}, A = #attempt{step = {_, Mon}}) ->
    decide(step_down, A#attempt{step = undefined});
message({adapter, Ref, {leased, Pid, Info}}, A = #attempt{ref = Ref}) ->
    decide({leased, Info}, A#attempt{worker = {Pid, monitor(process, Pid)}});
message({adapter, Ref, {refused, Error}}, A = #attempt{ref = Ref}) ->
    decide({refused, Error}, A);
message({adapter, Ref, {event, {tool_call, _} = Event}}, A = #attempt{ref = Ref, meter = Meter}) ->
    {[{event, Event}], A#attempt{meter = execution_meter:tool(Meter)}};
message({adapter, Ref, {event, Event}}, A = #attempt{ref = Ref}) ->
    {[{event, Event}], A};
message({adapter, Ref, beat}, A = #attempt{ref = Ref}) ->
    {[beat], A};
message({adapter, Ref, {usage, Props}}, A = #attempt{ref = Ref, meter = Meter}) ->
    {[{event, Event} || Event <- execution_events:provider_call(Props)], A#attempt{meter = execution_meter:call(Props, Meter)}};
message({adapter, Ref, {result, Status, Props}}, A = #attempt{ref = Ref}) ->
    {Outs, A1} = answered(Status, Props, A),
    {[{worker, Props} || is_map_key(unjournaled_tools, Props)] ++ Outs, A1};
message({adapter, Ref, {delegate, Worker, Call, Request}}, A = #attempt{ref = Ref, spec = Spec, core = Core, nested = Nested}) ->
    Asked = {{Worker, Ref, Call}, Request},
    case execution_core:phase(Core) of
        working ->
            #{attempt := Attempt, life := Life} = Spec,
            Owned = maps:with([task_id, payload, fence, deadline, depth, scope, life], Spec),
            %% As to the agent: each try asks what the one before has kept.
            Numbered = maps:merge(#{depth => 0}, Owned#{attempt => Attempt + Life - 1}),
            {[], A#attempt{nested = execution_nested:start(Numbered, Asked, Nested)}};
        _ ->
            ok = execution_nested:refuse(Asked),
            {[], A}
    end;
message({adapter, Ref, {lost, Lost}}, A = #attempt{ref = Ref}) ->
    decide({lost, Lost}, A);
message({adapter, Ref, grace_over}, A = #attempt{ref = Ref}) ->
    decide(grace_over, A);
message({adapter, Ref, {gone, Proof}}, A = #attempt{ref = Ref}) ->
    decide({gone, Proof}, A);
message({'DOWN', Mon, process, _, _}, A = #attempt{worker = {_, Mon}}) ->
    decide(worker_down, A#attempt{worker = undefined});
message(Message, A = #attempt{nested = Nested, meter = Meter}) ->
    case execution_nested:message(Message, Nested) of
        ignored ->
            ignored;
        {Outs, Nested1} ->
            Used = lists:foldl(fun execution_meter:more/2, Meter, [M || {used, M} <- Outs]),
            {Ends, A1} = settled(A#attempt{nested = Nested1, meter = Used}),
            {[Out || Out <- Outs, Out =:= beat orelse element(1, Out) =:= event] ++ Ends, A1}
    end.

%% What a framework gave is held against the schema of the task.
-spec answered(atom(), map(), attempt()) -> {[out()], attempt()}.
answered(succeeded, Props, A = #attempt{spec = #{payload := Payload, executor := Executor}}) ->
    case execution_around:check(Payload, Props, Executor) of
        {ok, Props1} -> decide({result, succeeded, Props1}, A);
        {repair, Repair} -> decide(misfit, done_with_worker(A#attempt{repair = {Props, Repair}}));
        {error, Error} -> decide({result, failed, Props#{error => Error}}, A)
    end;
answered(Status, Props, A) ->
    decide({result, Status, Props}, A).

%% It has answered, and serves others.
-spec done_with_worker(attempt()) -> attempt().
done_with_worker(A = #attempt{worker = {_, Monitor}}) ->
    true = demonitor(Monitor, [flush]),
    A#attempt{worker = undefined}.

%% The end, once no subtask runs any more; until then they are being ended.
-spec settled(attempt()) -> {[out()], attempt()}.
settled(A = #attempt{ending = none}) ->
    {[], A};
settled(A = #attempt{ending = {Kind, End}, nested = Nested}) ->
    case execution_nested:is_idle(Nested) of
        true -> {[{ended, {Kind, execution_nested:proven(End, Nested)}}], A#attempt{ending = none}};
        false -> {[], A}
    end.

%% @doc Asks for the end; `{ended, _}' follows, at once or after its grace.
-spec stop(execution_core:stop(), GraceMs :: non_neg_integer(), attempt()) -> {[out()], attempt()}.
stop(Why, GraceMs, A) ->
    decide({stop, Why, GraceMs}, A).

%% @doc The grace of a native step is over.
-spec grace_over(attempt()) -> {[out()], attempt()}.
grace_over(A) ->
    decide(grace_over, A).

%% @doc It has ended: nothing of it is heard any more.
-spec forget(attempt()) -> ok.
forget(#attempt{step = Step, worker = Worker}) ->
    _ = [demonitor(Mon, [flush]) || {_, Mon} <- [Step, Worker]],
    ok.

%% @doc How long the next try waits, in ms, by the `delay' of a `requeue'.
-spec pause_ms(none | {fixed | jitter, pos_integer()}) -> non_neg_integer().
pause_ms(none) -> 0;
pause_ms({fixed, Ms}) -> Ms;
pause_ms({jitter, Upper}) -> rand:uniform(Upper).

-spec decide(execution_core:event(), attempt()) -> {[out()], attempt()}.
decide(Event, A = #attempt{core = Core}) ->
    {Effects, Core1} = execution_core:step(Event, Core),
    effects(Effects, [], A#attempt{core = Core1}).

-spec effects([execution_core:effect()], [out()], attempt()) -> {[out()], attempt()}.
effects([], Outs, A) ->
    {lists:reverse(Outs), A};
effects([start_native | Rest], Outs, A = #attempt{spec = #{agent := Agent, header := Header, payload := Payload} = Spec}) ->
    {Given, Said} = execution_around:optimize(Payload, Agent, Header, <<"native">>),
    start_step(Spec#{payload := Given}, Rest, [{event, E} || E <- Said] ++ Outs, A);
effects([repair | Rest], Outs, A = #attempt{spec = Spec, repair = {_, Payload}}) ->
    {Step, Said} = execution_around:repair(Spec#{payload := Payload}),
    start_step(Step, Rest, [{event, Said} | Outs], A);
effects([{lease, Framework} | Rest], Outs, A = #attempt{spec = #{agent := Agent, tenant := Tenant, task_id := Id} = Spec}) ->
    Recorded = maps:get(recorded_environments, maps:get(header, Spec, #{}), []),
    {ok, Ref} = framework_adapter_pool:lease(#{framework => Framework, agent => Agent, tenant => Tenant, task_id => Id,
                                               environments => Recorded, owner => self(), depth => maps:get(depth, Spec, 0),
                                               alone => maps:get(alone, Spec, false)}),
    effects(Rest, Outs, A#attempt{ref = Ref});
effects([cancel_lease | Rest], Outs, A = #attempt{ref = Ref}) ->
    ok = framework_adapter_pool:cancel_lease(Ref),
    effects(Rest, Outs, A);
effects([{attempt_info, Info} | Rest], Outs, A) ->
    effects(Rest, [{worker, Info} | Outs], A);
effects([execute | Rest], Outs, A = #attempt{worker = {Pid, _}, spec = Spec, ref = Ref}) ->
    #{header := Header, deadline := Deadline, attempt := Attempt, life := Life} = Spec,
    #{payload := Payload, agent := Agent, executor := Executor} = Spec,
    {Given, Said} = execution_around:optimize(Payload, Agent, Header, Executor),
    Task = (maps:with([task_id, agent, fence, header, scope, life], Spec))#{payload => Given,
                                                                            tool_limit => execution_around:tool_limit(Executor)},
    %% To the agent each try is an attempt: it asks what the one before has kept.
    ok = framework_adapter_worker:execute(Pid, Ref, Task#{attempt => Attempt + Life - 1, deadline_ms => time_of(Deadline),
                                                          stream_text => maps:get(stream_text, Header, false)}),
    effects(Rest, [{event, E} || E <- Said] ++ Outs, A);
effects([{event, Event} | Rest], Outs, A) ->
    effects(Rest, [{event, Event} | Outs], A);
effects([{abort_native, GraceMs} | Rest], Outs, A = #attempt{step = {Pid, _}}) ->
    native_agent_step:cancel(Pid),
    effects(Rest, [{grace, GraceMs} | Outs], A);
effects([kill_native | Rest], Outs, A = #attempt{step = {Pid, _}}) ->
    true = exit(Pid, kill),
    effects(Rest, Outs, A);
effects([{cancel_worker, GraceMs} | Rest], Outs, A = #attempt{worker = {Pid, _}, ref = Ref, nested = Nested}) ->
    ok = framework_adapter_worker:cancel(Pid, Ref, GraceMs),
    effects(Rest, Outs, A#attempt{nested = execution_nested:stop(GraceMs, Nested)});
effects([kill_worker | Rest], Outs, A = #attempt{worker = {Pid, _}, ref = Ref}) ->
    ok = framework_adapter_worker:kill(Pid, Ref),
    effects(Rest, Outs, A);
effects([fence | Rest], Outs, A) ->
    effects(Rest, Outs, A);
effects([{Kind, End} | _], Outs, A = #attempt{nested = Nested}) when Kind =:= finish; Kind =:= requeue; Kind =:= park ->
    {Ends, A1} = settled(A#attempt{ending = {Kind, End}, nested = execution_nested:stop(0, Nested)}),
    {lists:reverse(Outs, Ends), A1}.

-spec start_step(map(), [execution_core:effect()], [out()], attempt()) -> {[out()], attempt()}.
start_step(Spec, Rest, Outs, A = #attempt{ref = Ref}) ->
    Step = maps:with([task_id, payload, agent, header, deadline, attempt, fence, scope, life], Spec),
    case native_agent_pool:start_step(Step#{owner => self(), ref => Ref}) of
        {ok, Pid} ->
            effects(Rest, Outs, A#attempt{step = {Pid, monitor(process, Pid)}});
        {error, _} ->
            {More, A1} = decide(step_down, A),
            {lists:reverse(Outs, More), A1}
    end.

%% A tick as a time of day, for the agent; 0: none.
-spec time_of(integer() | infinity) -> non_neg_integer().
time_of(infinity) -> 0;
time_of(Deadline) -> max(1, erlang:system_time(millisecond) + Deadline - erlang:monotonic_time(millisecond)).
