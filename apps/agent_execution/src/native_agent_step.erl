%% @doc A running native step: drives the agent's machine, which does no I/O, and does for it what it asks.
%%
%% The owner hears `{native, Ref, {event, Event}}' and exactly one of `{native, Ref, {result, succeeded, #{result}, Meter}}'
%% and `{native, Ref, {result, failed, #{error}, Meter}}'; if the process dies instead, its `DOWN' is the end. `cancel' aborts
%% the provider call and ends the step: nothing is left that could have an effect, which is the proof.
-module(native_agent_step).

-export([start_link/1]).
-export([cancel/1]).
-export([run/1]).

-export_type([spec/0, meter/0]).

%% Pieces of text that a provider may have under way.
-define(CHUNK_CREDIT, 32).
%% Pieces after which they are allowed again: most answers of one piece need no such call.
-define(CREDIT_BATCH, 16).
%% A full queue of provider calls is tried again, in ms.
-define(BUSY_RETRY_MS, 20).
%% Tries before a full queue is an answer.
-define(BUSY_TRIES, 50).
%% An answer is offered to a store that is away again and again, in ms.
-define(RECORD_RETRY_MS, 250).
%% An aborted call answers at once; behind that the step ends anyway, in ms.
-define(ABORT_TIMEOUT_MS, 1000).
%% A step of one call ends without a garbage collection.
-define(HEAP_WORDS, 1500).

-type spec() :: #{owner := pid(), ref := reference(), task_id := binary(), payload := term(), agent := map(),
                  header := map(), deadline := integer() | infinity, attempt := pos_integer(), fence := pos_integer(),
                  scope => binary(), life => pos_integer(), depth => non_neg_integer(), delegated => boolean()}.
-type meter() :: execution_meter:meter().

-record(step, {
    spec :: spec(),
    machine :: term(),
    meter :: meter(),
    journal :: engine_tools:attempt(),
    %% Answers that are not recorded yet: the end of the task records them with itself, anything else waits until they are.
    unrecorded = [] :: [term()],
    %% How often each tool was called with equal arguments.
    begun = #{} :: #{{binary(), binary()} => pos_integer()}
}).

%% @doc Starts the step; it works after this has returned.
-spec start_link(spec()) -> {ok, pid()}.
start_link(Spec) ->
    {ok, proc_lib:spawn_opt(?MODULE, run, [Spec], [link, {min_heap_size, ?HEAP_WORDS}])}.

%% @doc Aborts what is under way; the process ends, and with it the step.
-spec cancel(pid()) -> ok.
cancel(Pid) ->
    Pid ! cancel,
    ok.

%% @private
-spec run(spec()) -> ok.
run(#{owner := Owner, payload := Payload, agent := Agent, header := Header} = Spec) ->
    %% The owner's end is ours: nobody would record what the step does.
    _ = monitor(process, Owner),
    Meter = execution_meter:new(),
    Options = #{task_id => maps:get(task_id, Spec), engine_tools => engine_tools:served(Agent, Header),
                max_steps => maps:get(max_steps, Header, 50), model => agent_providers:model(Agent, Header),
                stream => maps:get(stream_text, Header, true)},
    Step = #step{spec = Spec, machine = none, meter = Meter, journal = journal(Spec)},
    case agent_native:agent_new(Payload, maps:get(payload, Agent, <<>>), Options) of
        {ok, Machine} -> event(start, Step#step{machine = Machine});
        {error, Error} -> finish(failed, #{error => engine_errors:from(Error)}, Step)
    end.

-spec journal(spec()) -> engine_tools:attempt().
journal(#{header := #{durability := ephemeral}}) -> none;
journal(#{header := Header} = Spec) ->
    maps:merge(maps:with([task_id, fence, attempt, scope, life], Spec), maps:with([replay], Header)).

-spec event(term(), #step{}) -> ok.
event(Event, S = #step{machine = Machine}) ->
    case agent_native:agent_step(Machine, Event) of
        {ok, Effects} -> effects(Effects, S);
        {error, Error} -> finish(failed, #{error => engine_errors:from(Error)}, S)
    end.

%% The machine gives its effects in order; a model call or the end is the last of them, tools answer each by an event.
-spec effects([tuple()], #step{}) -> ok.
effects([], _) ->
    ok;
effects([{emit, Event} | Rest], S) ->
    tell({event, Event}, S),
    effects(Rest, S);
effects([{call_tool, _, _, _} | _] = Effects, S = #step{unrecorded = [_ | _]}) ->
    recorded(Effects, S);
effects([{call_model, _, _} | _] = Effects, S = #step{unrecorded = [_ | _]}) ->
    recorded(Effects, S);
effects([{call_tool, CallId, Name, Arguments} | Rest], S = #step{machine = Machine, meter = Meter, begun = Begun}) ->
    Occurrence = maps:get({Name, Arguments}, Begun, 0),
    {Content, IsError} = engine_tools:run(S#step.journal, Name, Arguments, Occurrence),
    S1 = S#step{meter = execution_meter:tool(Meter),
                begun = Begun#{{Name, Arguments} => Occurrence + 1}},
    case agent_native:agent_step(Machine, {tool_result, CallId, Content, IsError}) of
        {ok, More} -> effects(Rest ++ More, S1);
        {error, Error} -> finish(failed, #{error => engine_errors:from(Error)}, S1)
    end;
effects([{call_model, CallId, Request} | _], S) ->
    call(CallId, Request, ?BUSY_TRIES, S);
effects([{finish, succeeded, Result} | _], S) ->
    finish(succeeded, #{result => Result}, S);
effects([{finish, failed, Error} | _], S) ->
    finish(failed, #{error => Error}, S).

%% Before the machine acts on an answer it is on stable storage. A store that is away is waited for: the answer was paid.
-spec recorded([tuple()], #step{}) -> ok.
recorded(Effects, S = #step{unrecorded = []}) ->
    effects(Effects, S);
recorded(Effects, S = #step{unrecorded = [Entry | Rest], spec = #{task_id := Id, fence := Fence}}) ->
    case agent_store:write({journal, Id, Fence, Entry}) of
        {ok, _} ->
            recorded(Effects, S#step{unrecorded = Rest});
        {error, #{reason := Reason} = Error} when Reason =:= attempt_fenced; Reason =:= task_not_found ->
            finish(failed, #{error => Error}, S);
        _ ->
            receive
                cancel -> finish(failed, #{error => execution_core:cancelled()}, S);
                {'DOWN', _, process, _, _} -> ok
            after ?RECORD_RETRY_MS ->
                recorded(Effects, S)
            end
    end.

%% What is left until a deadline, in ms; 0: there is none.
-spec left(integer() | infinity) -> non_neg_integer().
left(infinity) -> 0;
left(Deadline) -> max(1, Deadline - erlang:monotonic_time(millisecond)).

-spec call(non_neg_integer(), binary(), non_neg_integer(), #step{}) -> ok.
call(CallId, Request, Tries, S = #step{spec = #{task_id := TaskId, header := Header, agent := Agent, deadline := Deadline}}) ->
    Ref = make_ref(),
    Money = maps:get(money, Header, #{}),
    Options = Money#{stream => maps:get(stream_text, Header, true), credit => ?CHUNK_CREDIT, limit_ms => left(Deadline),
                     task_id => TaskId, tenant => maps:get(tenant, Header, <<>>), agent_id => payer(Agent)},
    case agent_providers:chat(Ref, Request, in_attempt(Options, S#step.journal)) of
        ok ->
            reply(CallId, Ref, 0, S);
        {done, Props} ->
            event({model_reply, CallId, maps:get(response, Props)}, metered(Props, S));
        busy when Tries > 0 ->
            receive
                cancel -> finish(failed, #{error => execution_core:cancelled()}, S);
                {'DOWN', _, process, _, _} -> ok
            after ?BUSY_RETRY_MS ->
                call(CallId, Request, Tries - 1, S)
            end;
        busy ->
            finish(failed, #{error => agent_error:new(overloaded, <<"too many provider calls are under way">>)}, S);
        {error, #{reason := store_unavailable}} ->
            %% The journal may hold the answer already.
            receive
                cancel -> finish(failed, #{error => execution_core:cancelled()}, S);
                {'DOWN', _, process, _, _} -> ok
            after ?RECORD_RETRY_MS ->
                call(CallId, Request, Tries, S)
            end;
        {error, Error} ->
            finish(failed, #{error => engine_errors:from(Error)}, S)
    end.

%% The name under which an agent spends: its id, or the type of one that has none.
-spec payer(map()) -> binary().
payer(#{id := Id}) when Id =/= <<>> -> Id;
payer(Agent) -> maps:get(agent_type, Agent, <<>>).

-spec in_attempt(map(), engine_tools:attempt()) -> map().
in_attempt(Options, none) -> Options;
in_attempt(Options, Attempt) -> maps:merge(Options, Attempt).

-spec reply(non_neg_integer(), reference(), Used :: non_neg_integer(), #step{}) -> ok.
reply(CallId, Ref, ?CREDIT_BATCH, S) ->
    _ = agent_providers:credit(Ref, ?CREDIT_BATCH),
    reply(CallId, Ref, 0, S);
reply(CallId, Ref, Used, S) ->
    receive
        {agent_native, Ref, chunk, Chunk} ->
            chunk(Chunk, S),
            reply(CallId, Ref, Used + 1, S);
        {agent_native, Ref, done, Props} ->
            event({model_reply, CallId, maps:get(response, Props)}, metered(Props, S));
        {agent_native, Ref, error, Error} ->
            event({model_error, CallId, engine_errors:from(Error)}, S);
        cancel ->
            abort(Ref),
            finish(failed, #{error => execution_core:cancelled()}, S);
        {'DOWN', _, process, _, _} ->
            abort(Ref)
    end.

%% After this no byte of ours is on its way to a provider.
-spec abort(reference()) -> ok.
abort(Ref) ->
    _ = agent_providers:cancel(Ref),
    aborted(Ref).

-spec aborted(reference()) -> ok.
aborted(Ref) ->
    receive
        {agent_native, Ref, chunk, _} -> aborted(Ref);
        {agent_native, Ref, _, _} -> ok
    after ?ABORT_TIMEOUT_MS ->
        ok
    end.

-spec chunk({binary(), binary()} | binary(), #step{}) -> ok.
chunk({<<>>, _}, _) -> ok;
chunk({Text, _}, S) -> tell({event, {text, Text}}, S);
chunk(_, _) -> ok.

-spec metered(map(), #step{}) -> #step{}.
metered(Props, S = #step{meter = M, unrecorded = Unrecorded}) ->
    lists:foreach(fun(Event) -> tell({event, Event}, S) end, execution_events:provider_call(Props)),
    S#step{meter = execution_meter:call(Props, M),
           unrecorded = case Props of #{journal := Entry} -> [Entry | Unrecorded]; #{} -> Unrecorded end}.

-spec finish(succeeded | failed, map(), #step{}) -> ok.
finish(Status, Props, S = #step{meter = Meter, unrecorded = []}) ->
    tell({result, Status, Props, Meter}, S);
finish(Status, Props, S = #step{meter = Meter, unrecorded = Unrecorded}) ->
    tell({result, Status, Props#{journal => Unrecorded}, Meter}, S).

-spec tell(term(), #step{}) -> ok.
tell(What, #step{spec = #{owner := Owner, ref := Ref}}) ->
    Owner ! {native, Ref, What},
    ok.
