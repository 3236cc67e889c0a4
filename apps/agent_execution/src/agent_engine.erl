%% @doc The engine towards the gateway: submit, cancel, route. All are called from request processes.
-module(agent_engine).

-include("execution_row.hrl").

%% API
-export([submit/2]).
-export([check/2]).
-export([cancel/4]).
-export([signal/3]).
-export([route/1]).
-export([route/2]).
-export([resolve/1]).
-export([running/0]).
-export([drain/1]).
-export([draining/0]).
-export([resume/0]).

%% A commit that takes longer is a store in trouble; the client is told that the outcome is not known, in ms.
-define(SUBMIT_TIMEOUT_MS, 20000).
%% Beyond the grace: fence, TERM, KILL, proof, commit, in ms.
-define(CANCEL_MARGIN_MS, 20000).
%% A cancel that meets a task between two processes tries again, in ms, so often.
-define(CANCEL_RETRY_MS, 20).
-define(CANCEL_TRIES, 100).
%% Between two looks at what still runs, in ms.
-define(DRAIN_POLL_MS, 50).
-define(DRAINING, {?MODULE, draining}).

%% @doc Takes a task; returns after its commit.
-spec submit(Header :: map(), Payload :: term()) -> {ok, TaskId :: binary()} | {error, agent_error:t()}.
submit(Header, Payload) ->
    case draining() of
        true ->
            {error, (agent_error:new(draining, <<"the node is stopping">>))#{retry_after_ms => 1000}};
        false ->
            case check(Header, Payload) of
                {ok, Agent, Route} -> start(Header, Payload, Agent, Route);
                {error, Error} -> {error, Error}
            end
    end.

%% @doc Whether a task could be taken now: its agent and its route, of each step of its plan too.
-spec check(Header :: map(), Payload :: term()) -> {ok, Agent :: map(), execution_router:route()} | {error, agent_error:t()}.
check(Header, Payload) ->
    case {resolve(Header), Header} of
        {{ok, _, _} = Resolved, #{has_plan := true}} ->
            case plan_route:check(Header, Payload) of ok -> Resolved; {error, Error} -> {error, Error} end;
        {Resolved, _} ->
            Resolved
    end.

-spec start(map(), term(), map(), map()) -> {ok, binary()} | {error, agent_error:t()}.
start(Header, Payload, Agent, Route) ->
    Ref = make_ref(),
    #{executor := Executor} = Route,
    Cached = framework_execution_cache:look(Payload, Agent, Executor, maps:get(tenant, Header)),
    Start = {submit, #{header => Header, payload => Payload, agent => Agent, route => Route, cached => Cached,
                       from => {self(), Ref}}},
    case execution_coordinator_sup:start_coordinator(Start) of
        {ok, Pid} ->
            Mon = monitor(process, Pid),
            receive
                {Ref, Answer} ->
                    true = demonitor(Mon, [flush]),
                    Answer;
                {'DOWN', Mon, process, _, _} ->
                    receive {Ref, Answer} -> Answer after 0 -> {error, ambiguous()} end
            after ?SUBMIT_TIMEOUT_MS ->
                true = demonitor(Mon, [flush]),
                {error, ambiguous()}
            end;
        {error, _} ->
            {error, agent_error:new(overloaded, <<"the engine is being started again">>)}
    end.

-spec ambiguous() -> agent_error:t().
ambiguous() ->
    agent_error:new(commit_ambiguous, <<"the outcome of the commit is not known; submit again with the same request_id">>).

%% @doc Ends a task, whatever it does, and answers with the proof.
-spec cancel(Tenant :: binary(), TaskId :: binary(), GraceMs :: non_neg_integer(), Reason :: binary()) ->
    {ok, map()} | {error, agent_error:t()}.
cancel(Tenant, TaskId, GraceMs, Reason) ->
    cancel(Tenant, TaskId, GraceMs, Reason, ?CANCEL_TRIES).

-spec cancel(binary(), binary(), non_neg_integer(), binary(), non_neg_integer()) -> {ok, map()} | {error, agent_error:t()}.
cancel(_, _, _, _, 0) ->
    {error, agent_error:new(overloaded, <<"the task changes hands; cancel again">>)};
cancel(Tenant, TaskId, GraceMs, Reason, Tries) ->
    case agent_store:write({cancel_request, Tenant, TaskId, Reason}) of
        {ok, #{state := State, fence := Fence}} ->
            case {State, ets:lookup(engine_tables:tasks(), TaskId)} of
                {running, [#row{pid = Pid}]} when is_pid(Pid) ->
                    again(ask(Pid, GraceMs), Tenant, TaskId, GraceMs, Reason, Tries);
                {running, _} ->
                    again(again, Tenant, TaskId, GraceMs, Reason, Tries);
                {Waiting, _} when Waiting =:= queued; Waiting =:= waiting ->
                    again(cancel_waiting(TaskId, Fence), Tenant, TaskId, GraceMs, Reason, Tries);
                {Terminal, _} ->
                    {error, agent_error:new(task_already_terminal, <<"the task has ended">>,
                                            #{<<"state">> => string:uppercase(atom_to_binary(Terminal))})}
            end;
        {error, Error} ->
            {error, engine_errors:from(Error)};
        {unknown, _} ->
            again(again, Tenant, TaskId, GraceMs, Reason, Tries)
    end.

-spec again(again | {ok, map()} | {error, agent_error:t()}, binary(), binary(), non_neg_integer(), binary(),
            non_neg_integer()) -> {ok, map()} | {error, agent_error:t()}.
again(again, Tenant, TaskId, GraceMs, Reason, Tries) ->
    receive after ?CANCEL_RETRY_MS -> cancel(Tenant, TaskId, GraceMs, Reason, Tries - 1) end;
again(Answer, _, _, _, _, _) ->
    Answer.

-spec ask(pid(), non_neg_integer()) -> again | {ok, map()} | {error, agent_error:t()}.
ask(Pid, GraceMs) ->
    Ref = make_ref(),
    Mon = monitor(process, Pid),
    execution_coordinator:cancel(Pid, Ref, GraceMs, cancelled),
    receive
        {Ref, Answer} ->
            true = demonitor(Mon, [flush]),
            Answer;
        {'DOWN', Mon, process, _, _} ->
            receive {Ref, Answer} -> Answer after 0 -> again end
    after GraceMs + ?CANCEL_MARGIN_MS ->
        true = demonitor(Mon, [flush]),
        {error, agent_error:new(commit_ambiguous, <<"the cancel is under way; its end is not known yet">>)}
    end.

%% Nothing runs: the row is taken out of the queue and ended. Its fence says whether somebody was quicker.
-spec cancel_waiting(binary(), non_neg_integer()) -> again | {ok, map()} | {error, agent_error:t()}.
cancel_waiting(TaskId, Fence) ->
    _ = run_queue:remove(TaskId),
    Proof = execution_core:no_proof_needed(),
    Finish = #{state => cancelled, error => execution_core:cancelled(), executor => <<>>,
               result => undefined, metrics => #{queue_ms => 0, execution_ms => 0}, attempt_outcome => cancelled,
               cause => <<"TASK_CANCELLED">>, proof => Proof, events => []},
    case agent_store:write({finish, TaskId, Fence, Finish}) of
        {ok, _} -> execution_family:ended(TaskId), {ok, Proof};
        {error, #{reason := Reason}} when Reason =:= attempt_fenced; Reason =:= task_already_terminal -> again;
        {error, Error} -> {error, engine_errors:from(Error)};
        {unknown, _} -> again
    end.

%% @doc An answer to what a task asks, as an encoded `SignalTaskRequest'; with the last one it runs again. It is stored before this returns:
%% should the engine end here, the poll of the store finds the task due.
-spec signal(Tenant :: binary(), TaskId :: binary(), Signal :: binary()) -> ok | {error, agent_error:t()}.
signal(Tenant, TaskId, Signal) ->
    case agent_store:write({signal, Tenant, TaskId, Signal}) of
        {ok, {waiting, _}} -> ok;
        {ok, {ready, Header}} -> wake(TaskId, Header);
        {error, Error} -> {error, engine_errors:from(Error)};
        {unknown, Error} -> {error, Error}
    end.

-spec wake(binary(), map()) -> ok.
wake(TaskId, #{tenant := Tenant} = Header) ->
    Class = case resolve(Header) of {ok, _, #{executor := Executor}} -> Executor; {error, _} -> <<"native">> end,
    run_queue:enqueue(#{task_id => TaskId, tenant => Tenant, priority => maps:get(priority, Header, 4), class => Class, wake => true,
                        create_ms => maps:get(create_ms, Header, 0), agent_id => maps:get(agent_id, Header, <<>>),
                        agent_type => maps:get(agent_type, Header, <<>>)}).

%% @doc Where a task would run now, with all candidates.
-spec route(Header :: map()) -> {ok, execution_router:route()} | {error, agent_error:t()}.
route(Header) ->
    case resolve(Header) of
        {ok, _, Route} -> {ok, Route};
        {error, Error} -> {error, Error}
    end.

%% @doc The same for a known agent.
-spec route(Header :: map(), Agent :: map()) -> {ok, execution_router:route()} | {error, agent_error:t()}.
route(Header, Agent) ->
    %% The header has what the router reads, by the same names.
    Request = Header#{method => maps:get(method, Header, auto), agent_framework => maps:get(framework, Agent, <<"auto">>),
                      agent_tools => maps:get(tools, Agent, [])},
    Own = execution_world:own(Agent),
    execution_router:route(case map_size(Own) of 0 -> Request; _ -> Request#{environments => Own} end,
                           execution_world:get(maps:get(task_type, Header, <<"general">>)), execution_world:config()).

%% @doc Agent and route of a task. A plan is driven natively; each of its steps has its own route.
-spec resolve(Header :: map()) -> {ok, Agent :: map(), execution_router:route()} | {error, agent_error:t()}.
resolve(#{tenant := Tenant} = Header) ->
    case agent_registry:resolve(Tenant, maps:get(agent_id, Header, <<>>), maps:get(agent_type, Header, <<>>)) of
        {ok, Agent} when map_get(has_plan, Header) ->
            {ok, Agent, #{executor => <<"native">>, candidates => [#{executor => <<"native">>, score => 100.0, refused => <<>>}],
                          reason => <<"a plan: each of its steps has its own route">>}};
        {ok, Agent} ->
            case route(Header, Agent) of
                {ok, Route} -> {ok, Agent, Route};
                {error, Error} -> {error, Error}
            end;
        {error, Error} ->
            {error, Error}
    end.

%% @doc Tasks that hold a slot now.
-spec running() -> non_neg_integer().
running() ->
    #{running := Running} = run_queue:counts(),
    lists:sum(maps:values(Running)).

%% @doc Refuses new tasks, starts none that wait, and waits for those that run, at most so long. What then still runs ends
%% with the node and is recovered at the next start.
-spec drain(TimeoutMs :: non_neg_integer()) -> ok.
drain(TimeoutMs) ->
    persistent_term:put(?DRAINING, true),
    drained(erlang:monotonic_time(millisecond) + TimeoutMs).

-spec drained(integer()) -> ok.
drained(Until) ->
    case running() =:= 0 orelse erlang:monotonic_time(millisecond) >= Until of
        true -> ok;
        false -> receive after ?DRAIN_POLL_MS -> drained(Until) end
    end.

%% @doc Whether the engine is being drained.
-spec draining() -> boolean().
draining() ->
    persistent_term:get(?DRAINING, false).

%% @doc Takes tasks (again): at the start.
-spec resume() -> ok.
resume() ->
    persistent_term:put(?DRAINING, false).
