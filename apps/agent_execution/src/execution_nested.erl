%% @doc Subtasks that a running agent has given to others. A functional object of whoever owns the attempt.
%%
%% Each request is a plan inside the task (`agent_native:delegation/3'), which a {@link plan_driver} runs: its ends are kept under names
%% that a later attempt uses again, its money is the task's, and its workers end with proof. The agent waits meanwhile; its worker
%% counts for nothing in the pool (`depth' of a lease).
-module(execution_nested).

-export([new/0]).
-export([start/3]).
-export([message/2]).
-export([stop/2]).
-export([refuse/1]).
-export([is_idle/1]).
-export([proven/2]).

-export_type([nested/0, out/0]).

%% A subtask may give subtasks away, so deep.
-define(MAX_DEPTH, 4).
%% Requests of one run that may be open; each has up to 64 subtasks.
-define(MAX_OPEN, 16).

-record(run, {pid :: pid(), monitor :: reference(), asker :: asker()}).
-record(nested, {
    runs = #{} :: #{reference() => #run{}},
    proofs = [] :: [map()],
    %% They are being ended: what ends without a word on its processes is not proven.
    stopping = false :: boolean()
}).
-opaque nested() :: #nested{}.
-type asker() :: {Worker :: pid(), Lease :: reference(), Call :: reference()}.
-type out() :: {event, tuple()} | beat | {used, execution_meter:meter()}.

%% @doc None.
-spec new() -> nested().
new() ->
    #nested{}.

%% @doc A worker's agent asks for subtasks; what cannot be run is said to it at once.
-spec start(Spec, {asker(), Request :: binary()}, nested()) -> nested() when
      Spec :: #{task_id := binary(), payload := agent_native:payload(), attempt := pos_integer(), fence := pos_integer(),
                deadline := integer() | infinity, depth := non_neg_integer(), scope => binary(), life => pos_integer()}.
start(#{depth := Depth}, {Asker, _}, N) when Depth >= ?MAX_DEPTH ->
    Max = integer_to_binary(?MAX_DEPTH),
    answer(Asker, {error, agent_error:new(delegation_too_deep, <<"subtasks of subtasks may be ", Max/binary, " deep">>,
                                          #{<<"max_depth">> => Max})}),
    N;
start(_, {Asker, _}, N = #nested{runs = Runs}) when map_size(Runs) >= ?MAX_OPEN ->
    Max = integer_to_binary(?MAX_OPEN),
    answer(Asker, {error, agent_error:new(overloaded, <<Max/binary, " requests for subtasks are open; put more subtasks into one, or "
                                                        "wait for some">>, #{<<"max_open">> => Max})}),
    N;
start(#{payload := Payload, depth := Depth} = Spec, {Asker, Request}, N = #nested{runs = Runs}) ->
    Ref = make_ref(),
    case agent_native:delegation(Payload, Request, maps:get(scope, Spec, <<>>)) of
        {ok, Header, Plan} ->
            Step = maps:with([task_id, attempt, fence, deadline, life], Spec),
            case native_agent_pool:start_step(Step#{owner => self(), ref => Ref, header => Header, payload => Plan, agent => #{},
                                                    depth => Depth + 1, delegated => true}) of
                {ok, Pid} ->
                    N#nested{runs = Runs#{Ref => #run{pid = Pid, monitor = monitor(process, Pid), asker = Asker}}};
                {error, _} ->
                    answer(Asker, {error, broken()}),
                    N
            end;
        {error, Error} ->
            answer(Asker, {error, engine_errors:from(Error)}),
            N
    end.

%% @doc A message that may be of one of them.
-spec message(term(), nested()) -> ignored | {[out()], nested()}.
message({native, Ref, What}, N = #nested{runs = Runs}) when is_map_key(Ref, Runs) ->
    said(What, Ref, N);
message({'DOWN', Monitor, process, _, _}, N = #nested{runs = Runs}) ->
    case [Ref || {Ref, #run{monitor = M}} <- maps:to_list(Runs), M =:= Monitor] of
        [Ref] -> {[], ended(Ref, {error, broken()}, [unproven()], N)};
        [] -> ignored
    end;
message(_, _) ->
    ignored.

-spec said(term(), reference(), nested()) -> {[out()], nested()}.
said({event, Event}, _, N) -> {[{event, Event}], N};
said(beat, _, N) -> {[beat], N};
said({result, succeeded, #{ends := Ends}, Meter}, Ref, N) -> {[{used, Meter}], ended(Ref, {ok, Ends}, [], N)};
said({result, input_requested, _, Meter}, Ref, N) ->
    Error = agent_error:new(unsupported_field, <<"a subtask asks a person, and nobody would answer it; ask in the task itself">>),
    {[{used, Meter}], ended(Ref, {error, Error}, [], N)};
said({result, _, Props, Meter}, Ref, N) ->
    Proofs = case Props of
                 #{proof := Proof} -> [Proof];
                 #{} when N#nested.stopping -> [unproven()];
                 #{} -> []
             end,
    {[{used, Meter}], ended(Ref, {error, maps:get(error, Props, broken())}, Proofs, N)}.

-spec unproven() -> map().
unproven() ->
    #{witness => unconfirmed, confirmed_dead => false}.

-spec ended(reference(), {ok, binary()} | {error, agent_error:t()}, [map()], nested()) -> nested().
ended(Ref, Answer, Proofs, N = #nested{runs = Runs, proofs = Before}) ->
    {#run{monitor = Monitor, asker = Asker}, Rest} = maps:take(Ref, Runs),
    true = demonitor(Monitor, [flush]),
    answer(Asker, Answer),
    N#nested{runs = Rest, proofs = Proofs ++ Before}.

-spec answer(asker(), {ok, binary()} | {error, agent_error:t()}) -> ok.
answer({Worker, Lease, Call}, Answer) ->
    framework_adapter_worker:delegated(Worker, Lease, Call, Answer).

-spec broken() -> agent_error:t().
broken() ->
    agent_error:new(internal, <<"the subtask's process ended">>).

%% @doc Ends all of them; each is heard of as at any end.
-spec stop(GraceMs :: non_neg_integer(), nested()) -> nested().
stop(GraceMs, N = #nested{runs = Runs}) ->
    maps:foreach(fun(_, #run{pid = Pid}) -> plan_driver:cancel(Pid, GraceMs) end, Runs),
    N#nested{stopping = true}.

%% @doc A request that came too late for its run is refused.
-spec refuse({asker(), Request :: binary()}) -> ok.
refuse({Asker, _}) ->
    answer(Asker, {error, execution_core:cancelled()}).

%% @doc Whether none runs.
-spec is_idle(nested()) -> boolean().
is_idle(#nested{runs = Runs}) ->
    map_size(Runs) =:= 0.

%% @doc The end of an attempt with the proofs of what was ended with it.
-spec proven(End, nested()) -> End when End :: map().
proven(#{proof := #{} = Proof} = End, #nested{proofs = [_ | _] = Proofs}) ->
    End#{proof := cancellation_proof:all([Proof | Proofs])};
proven(End, _) ->
    End.
