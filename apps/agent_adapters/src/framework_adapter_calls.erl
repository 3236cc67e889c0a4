%% @doc What a worker's agent asks of the engine: open CALL frames and their answers.
%%
%% The worker process checks slot, fence and gate by the header; here the payload is handed to Rust, and what comes
%% back becomes frames. Answers that find no credit wait; the provider's own credit bounds how many can.
-module(framework_adapter_calls).

-export([new/0]).
-export([open/4]).
-export([native/4]).
-export([abort_all/2]).
-export([drain/2]).
-export([forget/1]).

-export_type([calls/0, out/0, note/0]).

%% Chunks that a provider may have under way to one call.
-define(CHUNK_CREDIT, 16).

-record(call, {id :: non_neg_integer(), kind :: byte(), fence :: non_neg_integer()}).
-record(calls, {
    open = #{} :: #{reference() => #call{}},
    waiting = queue:new() :: queue:queue(out())
}).
-opaque calls() :: #calls{}.
-type out() :: {iodata(), After :: none | {grant, reference()}}.
%% A frame for the worker; after it left, the provider is granted another chunk.
-type note() :: {usage, map()} | {event, tuple()}.
%% What the owner of the lease must hear.

%% @doc No open calls.
-spec new() -> calls().
new() ->
    #calls{}.

%% @doc A CALL frame came; `closed' means that the gate is closed: every call is answered "cancelled".
-spec open(framework_adapter_frame:frame(), open | closed, map(), calls()) -> {[note()], calls()}.
open(Frame, closed, _Ctx, C) ->
    {[], refuse(Frame, agent_error:new(task_cancelled, <<"the task is being cancelled">>), C)};
open(#{kind := Number} = Frame, open, Ctx, C) ->
    dispatch(framework_adapter_frame:call_kind(Number), Frame, Ctx, C).

-spec dispatch(framework_adapter_frame:call_kind() | unknown, framework_adapter_frame:frame(), map(), calls()) ->
    {[note()], calls()}.
dispatch(chat, #{flags := Flags, payload := Payload} = Frame, Ctx, C) ->
    Ref = make_ref(),
    Opts = Ctx#{stream => lists:member(stream, Flags), credit => ?CHUNK_CREDIT},
    started(agent_providers:chat(Ref, Payload, Opts), Ref, Frame, C);
dispatch(embed, #{payload := Payload} = Frame, Ctx, C) ->
    Ref = make_ref(),
    started(agent_providers:embed(Ref, Payload, Ctx), Ref, Frame, C);
dispatch(tool, #{payload := Payload} = Frame, _Ctx, C) ->
    case agent_native:wire_decode(tool_request, Payload) of
        {ok, #{name := Name, arguments := Arguments} = Request} ->
            Id = maps:get(tool_call_id, Request, <<>>),
            {Content, IsError} = engine_tool(Name, Arguments),
            Reply = agent_native:wire_encode(tool_reply, #{content => Content, is_error => IsError}),
            {[{event, {tool_call, #{id => Id, name => Name, arguments => Arguments}}},
              {event, {tool_result, #{id => Id, name => Name, content => Content, is_error => IsError}}}],
             reply(Frame, Reply, C)};
        {error, Error} ->
            {[], refuse(Frame, agent_error:new(worker_protocol_error, <<"malformed tool request">>,
                                               #{<<"detail">> => maps:get(message, Error, <<>>)}), C)}
    end;
dispatch(tool_begin, #{payload := Payload} = Frame, _Ctx, C) ->
    %% The journal of tools comes with durable execution; until then every bracketed tool runs.
    Reply = agent_native:wire_encode(tool_begin_reply, #{decision => run}),
    bracket(tool_call, agent_native:wire_decode(tool_begin, Payload), Frame, Reply, C);
dispatch(tool_end, #{payload := Payload} = Frame, _Ctx, C) ->
    bracket(tool_result, agent_native:wire_decode(tool_end, Payload), Frame, <<>>, C);
dispatch(Kind, Frame, _Ctx, C) ->
    Name = atom_to_binary(Kind),
    {[], refuse(Frame, agent_error:new(capability_pending, <<"calls of kind ", Name/binary, " have not come yet">>,
                                       #{<<"capability">> => Name}), C)}.

%% One end of a tool's bracket is the task's event as well: the worker sends no frame of its own for it.
-spec bracket(tool_call | tool_result, {ok, map()} | {error, agent_error:t() | native_down}, framework_adapter_frame:frame(),
              binary(), calls()) -> {[note()], calls()}.
bracket(Event, {ok, Props}, Frame, Reply, C) ->
    Shown = case Event of
                tool_call -> maps:with([id, name, arguments], Props);
                tool_result -> maps:with([id, name, content, is_error], Props)
            end,
    {[{event, {Event, Shown}}], reply(Frame, Reply, C)};
bracket(_, {error, _}, Frame, _, C) ->
    {[], refuse(Frame, agent_error:new(worker_protocol_error, <<"malformed bracket of a tool">>), C)}.

-spec engine_tool(binary(), binary()) -> {binary(), boolean()}.
engine_tool(Name, Arguments) ->
    case agent_native:tool_call(Name, Arguments) of
        {ok, Content} -> {Content, false};
        {tool_error, Content} -> {Content, true};
        {error, unknown_tool} -> {<<"the engine has no tool named ", Name/binary>>, true};
        {error, _} -> {<<"the engine's tools are not available now">>, true}
    end.

-spec started(ok | {done, map()} | busy | {error, term()}, reference(), framework_adapter_frame:frame(), calls()) ->
    {[note()], calls()}.
started(ok, Ref, Frame, C = #calls{open = Open}) ->
    {[], C#calls{open = Open#{Ref => call(Frame)}}};
started({done, Props}, Ref, Frame, C) ->
    answer(done, Props, Ref, call(Frame), C);
started(busy, _, Frame, C) ->
    {[], refuse(Frame, agent_error:new(overloaded, <<"too many provider calls are under way">>), C)};
started({error, Error}, _, Frame, C) ->
    {[], refuse(Frame, Error, C)}.

%% @doc A message of the native side, `{agent_native, Ref, Event, Props}'. `unknown' if no open call has that reference.
-spec native(reference(), atom(), term(), calls()) -> unknown | {[note()], calls()}.
native(Ref, Event, Props, C = #calls{open = Open}) ->
    case Open of
        #{Ref := Call} -> answer(Event, Props, Ref, Call, C);
        #{} -> unknown
    end.

-spec answer(atom(), term(), reference(), #call{}, calls()) -> {[note()], calls()}.
answer(chunk, {_Text, Chunk}, Ref, Call, C) ->
    {[], push({frame(reply_chunk, Call, [stream], Chunk), {grant, Ref}}, C)};
answer(done, Props, Ref, Call, C) ->
    Frame = frame(reply, Call, [], maps:get(response, Props, <<>>)),
    {[{usage, maps:without([response, text], Props)}], closed(Ref, push({Frame, none}, C))};
answer(error, Error, Ref, Call, C) ->
    {[], closed(Ref, push({error_frame(Call, Error), none}, C))};
answer(_, _, _, _, C) ->
    {[], C}.

%% @doc Closes the gate on what is open: every provider call is aborted, every caller told.
-spec abort_all(agent_error:t(), calls()) -> calls().
abort_all(Error, C = #calls{open = Open}) ->
    maps:fold(fun(Ref, Call, Acc) ->
                  _ = agent_providers:cancel(Ref),
                  closed(Ref, push({error_frame(Call, Error), none}, Acc))
              end, C, Open).

%% @doc Aborts what is open without an answer: the worker is no more.
-spec forget(calls()) -> ok.
forget(#calls{open = Open}) ->
    lists:foreach(fun(Ref) -> _ = agent_providers:cancel(Ref) end, maps:keys(Open)).

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

-spec refuse(framework_adapter_frame:frame(), agent_error:t(), calls()) -> calls().
refuse(Frame, Error, C) ->
    push({error_frame(call(Frame), Error), none}, C).

-spec reply(framework_adapter_frame:frame(), binary(), calls()) -> calls().
reply(#{call_id := 0}, _, C) ->
    C;    % no answer is wanted
reply(Frame, Payload, C) ->
    push({frame(reply, call(Frame), [], Payload), none}, C).

%% What an answer repeats of the frame that asked.
-spec call(framework_adapter_frame:frame()) -> #call{}.
call(#{call_id := Id, kind := Kind, fence := Fence}) ->
    #call{id = Id, kind = Kind, fence = Fence}.

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
