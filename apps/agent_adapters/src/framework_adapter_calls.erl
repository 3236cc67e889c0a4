%% @doc What a worker's agent asks of the engine: open CALL frames and their answers.
%%
%% The worker process checks slot, fence and gate by the header; here the payload is handed to Rust, and what comes
%% back becomes frames. Answers that find no credit wait; the provider's own credit bounds how many can.
%%
%% In an attempt with a journal (`fence' and `attempt' in the context) the answer of a model is recorded before the worker sees it, and
%% so is the begin of a tool that must not run twice: such a call stays open until the commit.
-module(framework_adapter_calls).

-export([new/0]).
-export([open/4]).
-export([native/4]).
-export([delegated/3]).
-export([abort_all/2]).
-export([add/2]).
-export([cancel/2]).
-export([drain/2]).
-export([forget/1]).

-export_type([calls/0, out/0, note/0]).

%% Chunks that a provider may have under way to one call.
-define(CHUNK_CREDIT, 16).

%% A store that is away is asked again until it is back: answers were paid. In ms.
-define(STORE_RETRY_MS, 250).

-record(call, {id :: non_neg_integer(), kind :: byte(), fence :: non_neg_integer(), task_id :: binary()}).
%% What becomes of a call once the store has committed the operation.
-record(commit, {op :: tuple(), call :: #call{}, then :: {reply, binary()} | {begin_tool, map()} | none}).
%% A call of memory that the store has, or waits for.
-record(memory, {request :: binary(), place :: map(), call :: #call{}}).
%% A question to a model that waits for the store.
-record(ask, {function :: chat | embed, request :: binary(), options :: map(), call :: #call{}}).
%% Subtasks that somebody else runs.
-record(delegate, {call :: #call{}}).
-record(calls, {
    open = #{} :: #{reference() => #call{} | #commit{} | #ask{} | #memory{} | #delegate{}},
    %% How often each of the engine's tools was called with equal arguments.
    begun = #{} :: #{{binary(), binary()} => pos_integer()},
    waiting = queue:new() :: queue:queue(out())
}).
-opaque calls() :: #calls{}.
-type out() :: {iodata(), After :: none | free | {grant, reference()}}.
%% A frame for the worker; after it left, the provider is granted another chunk.
-type note() :: {usage, map()} | {event, tuple()} | {delegate, reference(), Request :: binary()}.
%% What the owner of the lease must hear.

%% @doc No open calls.
-spec new() -> calls().
new() ->
    #calls{}.

%% @doc A CALL frame came; `closed' means that the gate is closed: every call is answered "cancelled".
-spec open(framework_adapter_frame:frame(), open | closed, map(), calls()) -> {[note()], calls()}.
open(Frame, closed, Ctx, C) ->
    {[], refuse(Frame, Ctx, agent_error:new(task_cancelled, <<"the task is being cancelled">>), C)};
open(#{kind := Number} = Frame, open, Ctx, C) ->
    dispatch(framework_adapter_frame:call_kind(Number), Frame, Ctx, C).

-spec dispatch(framework_adapter_frame:call_kind() | unknown, framework_adapter_frame:frame(), map(), calls()) ->
    {[note()], calls()}.
dispatch(chat, #{flags := Flags, payload := Payload} = Frame, Ctx, C) ->
    Opts = Ctx#{stream => lists:member(stream, Flags), credit => ?CHUNK_CREDIT},
    ask(#ask{function = chat, request = Payload, options = Opts, call = call(Frame, Ctx)}, C);
dispatch(embed, #{payload := Payload} = Frame, Ctx, C) ->
    ask(#ask{function = embed, request = Payload, options = Ctx, call = call(Frame, Ctx)}, C);
dispatch(memory, #{payload := Payload} = Frame, Ctx, C) ->
    Place = maps:with([task, task_id, tenant, agent_id, fence, scope], Ctx),
    remember(#memory{request = Payload, place = Place, call = call(Frame, Ctx)}, C);
dispatch(tool, #{payload := Payload} = Frame, Ctx, C = #calls{begun = Begun}) ->
    case agent_native:wire_decode(tool_request, Payload) of
        {ok, #{name := Name, arguments := Arguments} = Request} ->
            Id = maps:get(tool_call_id, Request, <<>>),
            Occurrence = maps:get({Name, Arguments}, Begun, 0),
            Attempt = case Ctx of #{fence := _} -> Ctx; #{} -> none end,
            {Content, IsError} = engine_tools:run(Attempt, Name, Arguments, Occurrence),
            Reply = agent_native:wire_encode(tool_reply, #{content => Content, is_error => IsError}),
            {[{event, {tool_call, #{id => Id, name => Name, arguments => Arguments}}},
              {event, {tool_result, #{id => Id, name => Name, content => Content, is_error => IsError}}}],
             reply(call(Frame, Ctx), Reply, C#calls{begun = Begun#{{Name, Arguments} => Occurrence + 1}})};
        {error, Error} ->
            {[], refuse(Frame, Ctx, agent_error:new(worker_protocol_error, <<"malformed tool request">>,
                                                    #{<<"detail">> => maps:get(message, Error, <<>>)}), C)}
    end;
%% One end of a tool's bracket is the task's event as well: the worker sends no frame of its own for it.
dispatch(tool_begin, #{payload := Payload} = Frame, Ctx, C) ->
    case agent_native:wire_decode(tool_begin, Payload) of
        {ok, Tool} ->
            {Notes, C1} = begin_tool(Tool, call(Frame, Ctx), Ctx, C),
            {[{event, {tool_call, maps:with([id, name, arguments], Tool)}} | Notes], C1};
        {error, _} ->
            {[], refuse(Frame, Ctx, malformed_bracket(), C)}
    end;
dispatch(tool_end, #{payload := Payload} = Frame, Ctx, C) ->
    case agent_native:wire_decode(tool_end, Payload) of
        {ok, Tool} ->
            {Notes, C1} = end_tool(Tool, call(Frame, Ctx), Ctx, C),
            {[{event, {tool_result, maps:with([id, name, content, is_error], Tool)}} || not maps:get(withdrawn, Tool, false)] ++ Notes,
             C1};
        {error, _} ->
            {[], refuse(Frame, Ctx, malformed_bracket(), C)}
    end;
dispatch(delegate, #{payload := Payload} = Frame, Ctx, C = #calls{open = Open}) ->
    Ref = make_ref(),
    {[{delegate, Ref, Payload}], C#calls{open = Open#{Ref => #delegate{call = call(Frame, Ctx)}}}};
dispatch(select_provider, #{payload := Payload} = Frame, Ctx, C) ->
    case agent_providers:select(Payload, maps:get(policy, Ctx, <<>>)) of
        {ok, Choice} -> {[], reply(call(Frame, Ctx), Choice, C)};
        {error, Error} -> {[], refuse(Frame, Ctx, Error, C)}
    end;
dispatch(Kind, Frame, Ctx, C) ->
    Name = atom_to_binary(Kind),
    {[], refuse(Frame, Ctx, agent_error:new(capability_pending, <<"calls of kind ", Name/binary, " have not come yet">>,
                                            #{<<"capability">> => Name}), C)}.

-spec malformed_bracket() -> agent_error:t().
malformed_bracket() ->
    agent_error:new(worker_protocol_error, <<"malformed bracket of a tool">>).

%% The first attempt finds nothing recorded, so only a tool that must not run twice leaves its mark before it runs.
-spec begin_tool(map(), #call{}, map(), calls()) -> {[note()], calls()}.
begin_tool(#{replay := Replay} = Tool, Call, #{fence := Fence, attempt := N, task_id := Id} = Ctx, C)
  when Replay =:= once; Replay =:= journaled, N > 1; Replay =:= journaled, map_get(life, Ctx) > 1;
       Replay =:= journaled, map_get(replay, Ctx) ->
    commit(#commit{op = {tool_begin, Id, Fence, scoped(Tool, Ctx)}, call = Call, then = {begin_tool, Tool}}, C);
begin_tool(Tool, Call, _, C) ->
    decided(run, Tool, Call, C).

-spec end_tool(map(), #call{}, map(), calls()) -> {[note()], calls()}.
end_tool(Tool, Call, #{fence := Fence, task_id := Id} = Ctx, C) ->
    %% Not waited for: whatever the agent asks next is recorded behind it.
    {Notes, C1} = commit(#commit{op = {tool_end, Id, Fence, scoped(Tool, Ctx)}, call = Call, then = none}, C),
    {Notes, reply(Call, <<>>, C1)};
end_tool(_, Call, _, C) ->
    {[], reply(Call, <<>>, C)}.

%% Steps of a plan run side by side: equal calls of two of them are not the same.
-spec scoped(map(), map()) -> map().
scoped(Tool, Ctx) ->
    maps:merge(Tool, maps:with([scope, life], Ctx)).

-spec decided(run | in_doubt | {recorded, map()}, map(), #call{}, calls()) -> {[note()], calls()}.
decided(run, _, Call, C) ->
    {[], reply(Call, agent_native:wire_encode(tool_begin_reply, #{decision => run}), C)};
decided({recorded, Result}, Tool, Call, C) ->
    Reply = agent_native:wire_encode(tool_begin_reply, Result#{decision => recorded}),
    {[{event, {tool_result, maps:merge(maps:with([id, name], Tool), Result)}}], reply(Call, Reply, C)};
decided(in_doubt, #{name := Name}, Call, C) ->
    Error = agent_error:new(replay_not_allowed, <<"an earlier attempt ended while the tool ", Name/binary, " ran: nobody here knows "
                                                  "whether it had its effect, and it may run only once">>, #{<<"tools">> => Name}),
    {[], push({error_frame(Call, Error), none}, C)}.

%% Without the store nobody knows whether the answer is there already: the question waits.
-spec ask(#ask{}, calls()) -> {[note()], calls()}.
ask(Ask = #ask{function = Function, request = Request, options = Options, call = Call}, C) ->
    Ref = make_ref(),
    case agent_providers:Function(Ref, Request, Options) of
        {error, #{reason := store_unavailable}} -> {[], again(Ask, C)};
        Started -> started(Started, Ref, Call, C)
    end.

%% The store is asked for a value, or writes one: fenced, and under the names of the task's own namespace.
-spec remember(#memory{}, calls()) -> {[note()], calls()}.
remember(Memory = #memory{request = Request, place = Place}, C = #calls{open = Open}) ->
    case agent_store:memory(Place, Request) of
        {ok, Ref} -> {[], C#calls{open = Open#{Ref => Memory}}};
        {done, Answer} -> remembered(done, Answer, Memory, C);
        {error, Error} -> remembered(error, Error, Memory, C)
    end.

%% What the store did not take is given to it again; what it may have written is not.
-spec remembered(done | error | again, term(), #memory{}, calls()) -> {[note()], calls()}.
remembered(done, Answer, #memory{call = Call}, C) ->
    {[], reply(Call, Answer, C)};
remembered(again, _, Memory, C) ->
    remember(Memory, C);
remembered(error, #{reason := Reason}, Memory, C)
  when Reason =:= store_unavailable; Reason =:= overloaded; Reason =:= native_down; Reason =:= disk_low ->
    {[], again(Memory, C)};
remembered(error, Error, #memory{call = Call}, C) ->
    {[], push({error_frame(Call, Error), none}, C)}.

%% The store is asked again a little later.
-spec again(#ask{} | #commit{} | #memory{}, calls()) -> calls().
again(What, C = #calls{open = Open}) ->
    Ref = make_ref(),
    _ = erlang:send_after(?STORE_RETRY_MS, self(), {agent_native, Ref, again, none}),
    C#calls{open = Open#{Ref => What}}.

-spec started(ok | {done, map()} | busy | {error, term()}, reference(), #call{}, calls()) -> {[note()], calls()}.
started(ok, Ref, Call, C = #calls{open = Open}) ->
    {[], C#calls{open = Open#{Ref => Call}}};
started({done, Props}, Ref, Call, C) ->
    answer(done, Props, Ref, Call, C);
started(busy, _, Call, C) ->
    Error = agent_error:new(overloaded, <<"too many provider calls are under way">>),
    {[], push({error_frame(Call, Error), none}, C)};
started({error, Error}, _, Call, C) ->
    {[], push({error_frame(Call, Error), none}, C)}.

%% @doc A message of the native side, `{agent_native, Ref, Event, Props}'. `unknown' if no open call has that reference.
-spec native(reference(), atom(), term(), calls()) -> unknown | {[note()], calls()}.
native(Ref, Event, Props, C = #calls{open = Open}) ->
    case Open of
        #{Ref := #call{} = Call} -> answer(Event, Props, Ref, Call, C);
        #{Ref := #ask{} = Ask} -> ask(Ask, closed(Ref, C));
        #{Ref := #memory{} = Memory} -> remembered(Event, Props, Memory, closed(Ref, C));
        #{Ref := #commit{} = Commit} -> committed(Event, Props, Commit, closed(Ref, C));
        #{} -> unknown
    end.

%% @doc The end of a request for subtasks, `Ref' of its note; one that nobody waits for is nothing.
-spec delegated(reference(), {ok, binary()} | {error, agent_error:t()}, calls()) -> calls().
delegated(Ref, Answer, C = #calls{open = Open}) ->
    case {Open, Answer} of
        {#{Ref := #delegate{call = Call}}, {ok, Ends}} -> reply(Call, Ends, closed(Ref, C));
        {#{Ref := #delegate{call = Call}}, {error, Error}} -> push({error_frame(Call, Error), none}, closed(Ref, C));
        _ -> C
    end.

-spec answer(atom(), term(), reference(), #call{}, calls()) -> {[note()], calls()}.
answer(chunk, {_Text, Chunk}, Ref, Call, C) ->
    {[], push({frame(reply_chunk, Call, [stream], Chunk), {grant, Ref}}, C)};
answer(done, #{response := Response} = Props, Ref, Call = #call{task_id = Id, fence = Fence}, C) ->
    Used = {usage, maps:without([response, journal], Props)},
    case Props of
        #{journal := Entry} ->
            {Notes, C1} = commit(#commit{op = {journal, Id, Fence, Entry}, call = Call, then = {reply, Response}}, closed(Ref, C)),
            {[Used | Notes], C1};
        #{} ->
            {[Used], reply(Call, Response, closed(Ref, C))}
    end;
answer(error, Error, Ref, Call, C) ->
    {[], closed(Ref, push({error_frame(Call, Error), none}, C))};
answer(_, _, _, _, C) ->
    {[], C}.

-spec commit(#commit{}, calls()) -> {[note()], calls()}.
commit(Commit = #commit{op = Op}, C = #calls{open = Open}) ->
    case agent_store:start(Op) of
        {ok, Ref} -> {[], C#calls{open = Open#{Ref => Commit}}};
        {done, Result} -> committed(done, Result, Commit, C);
        {error, Error} -> committed(error, Error, Commit, C)
    end.

-spec committed(done | error | again, term(), #commit{}, calls()) -> {[note()], calls()}.
committed(done, _, #commit{call = Call, then = {reply, Payload}}, C) ->
    {[], reply(Call, Payload, C)};
committed(done, Decision, #commit{call = Call, then = {begin_tool, Tool}}, C) ->
    decided(Decision, Tool, Call, C);
committed(again, _, Commit, C) ->
    commit(Commit, C);
committed(error, #{reason := Reason}, Commit, C)
  when Reason =:= commit_ambiguous; Reason =:= store_unavailable; Reason =:= overloaded; Reason =:= native_down; Reason =:= disk_low ->
    %% Each of these operations may be written twice.
    {[], again(Commit, C)};
committed(_, _, #commit{then = none}, C) ->
    {[], C};
committed(error, Error, #commit{call = Call}, C) ->
    {[], push({error_frame(Call, Error), none}, C)}.

%% @doc Closes the gate on what is open: every provider call is aborted, every caller told.
-spec abort_all(agent_error:t(), calls()) -> calls().
abort_all(Error, C = #calls{open = Open}) ->
    maps:fold(fun(_, #commit{then = none}, Acc) ->
                      Acc;
                 (Ref, #commit{call = Call}, Acc) ->
                      closed(Ref, push({error_frame(Call, Error), none}, Acc));
                 (Ref, #ask{call = Call}, Acc) ->
                      closed(Ref, push({error_frame(Call, Error), none}, Acc));
                 (Ref, #memory{call = Call}, Acc) ->
                      closed(Ref, push({error_frame(Call, Error), none}, Acc));
                 (Ref, #delegate{call = Call}, Acc) ->
                      closed(Ref, push({error_frame(Call, Error), none}, Acc));
                 (Ref, Call, Acc) ->
                      _ = agent_providers:cancel(Ref),
                      closed(Ref, push({error_frame(Call, Error), none}, Acc))
              end, C, Open).

%% @doc Aborts what is open without an answer: the worker is no more.
-spec forget(calls()) -> ok.
forget(#calls{open = Open}) ->
    maps:foreach(fun(Ref, #call{}) -> agent_providers:cancel(Ref);
                    (_, _) -> ok
                 end, Open).

%% @doc A frame of the task that waits for credit like the answers do.
-spec add(iodata(), calls()) -> calls().
add(Frame, C) ->
    push({Frame, none}, C).

%% @doc A frame that costs no credit, behind those that wait: what it cancels may be among them.
-spec cancel(iodata(), calls()) -> calls().
cancel(Frame, C) ->
    push({Frame, free}, C).

%% @doc Takes the frames that credit allows; the rest waits.
-spec drain(framework_adapter_credit:credit(), calls()) -> {[iodata()], framework_adapter_credit:credit(), calls()}.
drain(Credit, C = #calls{waiting = Waiting}) ->
    drain(Credit, Waiting, [], C).

-spec drain(framework_adapter_credit:credit(), queue:queue(out()), [iodata()], calls()) ->
    {[iodata()], framework_adapter_credit:credit(), calls()}.
drain(Credit, Waiting, Acc, C) ->
    case queue:peek(Waiting) of
        empty ->
            {lists:reverse(Acc), Credit, C#calls{waiting = Waiting}};
        {value, {Frame, free}} ->
            drain(Credit, queue:drop(Waiting), [Frame | Acc], C);
        {value, {Frame, After}} ->
            case framework_adapter_credit:take(iolist_size(Frame), Credit) of
                {ok, Credit1} ->
                    grant(After),
                    drain(Credit1, queue:drop(Waiting), [Frame | Acc], C);
                wait ->
                    {lists:reverse(Acc), Credit, C#calls{waiting = Waiting}}
            end
    end.

-spec grant(none | {grant, reference()}) -> ok.
grant(none) ->
    ok;
grant({grant, Ref}) ->
    _ = agent_providers:credit(Ref, 1),
    ok.

-spec refuse(framework_adapter_frame:frame(), map(), agent_error:t(), calls()) -> calls().
refuse(Frame, Ctx, Error, C) ->
    push({error_frame(call(Frame, Ctx), Error), none}, C).

-spec reply(#call{}, binary(), calls()) -> calls().
reply(#call{id = 0}, _, C) ->
    C;    % no answer is wanted
reply(Call, Payload, C) ->
    push({frame(reply, Call, [], Payload), none}, C).

%% What an answer repeats of the frame that asked.
-spec call(framework_adapter_frame:frame(), map()) -> #call{}.
call(#{call_id := Id, kind := Kind, fence := Fence}, #{task_id := TaskId}) ->
    #call{id = Id, kind = Kind, fence = Fence, task_id = TaskId}.

-spec error_frame(#call{}, agent_error:t()) -> iodata().
error_frame(Call, Error) ->
    frame(reply, Call, [error], agent_native:wire_encode(error, Error)).

-spec frame(reply | reply_chunk, #call{}, [error | stream], binary()) -> iodata().
frame(Type, #call{id = Id, kind = Kind, fence = Fence}, Flags, Payload) ->
    framework_adapter_frame:encode(Type, Kind, Flags, {0, Id}, Fence, Payload).

-spec push(out(), calls()) -> calls().
push(Out, C = #calls{waiting = Waiting}) ->
    C#calls{waiting = queue:in(Out, Waiting)}.

-spec closed(reference(), calls()) -> calls().
closed(Ref, C = #calls{open = Open}) ->
    C#calls{open = maps:remove(Ref, Open)}.
