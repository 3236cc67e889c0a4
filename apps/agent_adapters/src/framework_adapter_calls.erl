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
-export([count/1]).
-export([flush/1]).

-export_type([calls/0, out/0, note/0]).

%% Chunks that a provider may have under way to one call.
-define(CHUNK_CREDIT, 16).

-record(call, {id :: non_neg_integer(), kind :: framework_adapter_frame:call_kind(), fence :: non_neg_integer()}).
-record(calls, {
    open = #{} :: #{reference() => #call{}},
    waiting = queue:new() :: queue:queue(out()),
    total = 0 :: non_neg_integer()
}).
-opaque calls() :: #calls{}.
-type out() :: {iodata(), Counted :: boolean(), After :: none | {grant, reference()}}.
%% A frame for the worker; after it left, the provider is granted another chunk.
-type note() :: {usage, map()} | {event, tuple()}.
%% What the owner of the lease must hear.

%% @doc No open calls.
-spec new() -> calls().
new() ->
    #calls{}.

%% @doc Number of open calls.
-spec count(calls()) -> non_neg_integer().
count(#calls{open = Open}) ->
    map_size(Open).

%% @doc A CALL frame came; `closed' means that the gate is closed: every call is answered "cancelled".
-spec open(framework_adapter_frame:frame(), open | closed, map(), calls()) -> {[note()], calls()}.
open(Frame, closed, _Ctx, C) ->
    {[], refuse(Frame, agent_error:new(task_cancelled, <<"the task is being cancelled">>), C)};
open(#{kind := Number} = Frame, open, Ctx, C) ->
    dispatch(framework_adapter_frame:call_kind(Number), Frame, Ctx, C#calls{total = C#calls.total + 1}).

-spec dispatch(framework_adapter_frame:call_kind() | unknown, framework_adapter_frame:frame(), map(), calls()) ->
    {[note()], calls()}.
dispatch(chat, #{flags := Flags, payload := Payload} = Frame, Ctx, C) ->
    Ref = make_ref(),
    Opts = Ctx#{stream => lists:member(stream, Flags), credit => ?CHUNK_CREDIT},
    {[], started(agent_providers:chat(Ref, Payload, Opts), Ref, chat, Frame, C)};
dispatch(embed, #{payload := Payload} = Frame, Ctx, C) ->
    Ref = make_ref(),
    {[], started(agent_providers:embed(Ref, Payload, Ctx), Ref, embed, Frame, C)};
dispatch(tool, #{payload := Payload} = Frame, _Ctx, C) ->
    case agent_native:wire_decode(tool_request, Payload) of
        {ok, #{name := Name, arguments := Arguments} = Request} ->
            Id = maps:get(tool_call_id, Request, <<>>),
            {Content, IsError} = engine_tool(Name, Arguments),
            Reply = agent_native:wire_encode(tool_reply, #{content => Content, is_error => IsError}),
            {[{event, {tool_call, #{id => Id, name => Name, arguments => Arguments}}},
              {event, {tool_result, #{id => Id, name => Name, content => Content, is_error => IsError}}}],
             reply(Frame, tool, [], Reply, C)};
        {error, Error} ->
            {[], refuse(Frame, agent_error:new(worker_protocol_error, <<"malformed tool request">>,
                                               #{<<"detail">> => maps:get(message, Error, <<>>)}), C)}
    end;
dispatch(tool_begin, Frame, _Ctx, C) ->
    %% The journal of tools comes with durable execution; until then every bracketed tool runs.
    {[], reply(Frame, tool_begin, [], agent_native:wire_encode(tool_begin_reply, #{decision => run}), C)};
dispatch(tool_end, Frame, _Ctx, C) ->
    {[], reply(Frame, tool_end, [], <<>>, C)};
dispatch(Kind, Frame, _Ctx, C) ->
    Name = atom_to_binary(Kind),
    {[], refuse(Frame, agent_error:new(capability_pending, <<"calls of kind ", Name/binary, " have not come yet">>,
                                       #{<<"capability">> => Name}), C)}.

-spec engine_tool(binary(), binary()) -> {binary(), boolean()}.
engine_tool(Name, Arguments) ->
    case agent_native:tool_call(Name, Arguments) of
        {ok, Content} -> {Content, false};
        {tool_error, Content} -> {Content, true};
        {error, unknown_tool} -> {<<"the engine has no tool named ", Name/binary>>, true};
        {error, _} -> {<<"the engine's tools are not available now">>, true}
    end.

-spec started(ok | busy | {error, term()}, reference(), framework_adapter_frame:call_kind(),
              framework_adapter_frame:frame(), calls()) -> calls().
started(ok, Ref, Kind, #{call_id := Id, fence := Fence}, C = #calls{open = Open}) ->
    C#calls{open = Open#{Ref => #call{id = Id, kind = Kind, fence = Fence}}};
started(busy, _, _, Frame, C) ->
    refuse(Frame, agent_error:new(overloaded, <<"too many provider calls are under way">>), C);
started({error, Error}, _, _, Frame, C) ->
    refuse(Frame, Error, C).

%% @doc A message of the native side, `{agent_native, Ref, Event, Props}'. `unknown' if no open call has that reference.
-spec native(reference(), atom(), term(), calls()) -> unknown | {[note()], calls()}.
native(Ref, Event, Props, C = #calls{open = Open}) ->
    case Open of
        #{Ref := Call} -> answer(Event, Props, Ref, Call, C);
        #{} -> unknown
    end.

-spec answer(atom(), term(), reference(), #call{}, calls()) -> {[note()], calls()}.
answer(chunk, {_Text, Chunk}, Ref, #call{id = Id, kind = Kind, fence = Fence}, C) ->
    Frame = frame(reply_chunk, Kind, [stream], Id, Fence, Chunk),
    {[], push({Frame, true, {grant, Ref}}, C)};
answer(done, Props, Ref, #call{id = Id, kind = Kind, fence = Fence}, C) ->
    Frame = frame(reply, Kind, [], Id, Fence, maps:get(response, Props, <<>>)),
    {[{usage, maps:without([response, text], Props)}], closed(Ref, push({Frame, true, none}, C))};
answer(error, Error, Ref, #call{id = Id, kind = Kind, fence = Fence}, C) ->
    Frame = frame(reply, Kind, [error], Id, Fence, agent_native:wire_encode(error, Error)),
    {[], closed(Ref, push({Frame, true, none}, C))};
answer(_, _, _, _, C) ->
    {[], C}.

%% @doc Closes the gate on what is open: every provider call is aborted, every caller told.
-spec abort_all(agent_error:t(), calls()) -> calls().
abort_all(Error, C = #calls{open = Open}) ->
    maps:fold(fun(Ref, #call{id = Id, kind = Kind, fence = Fence}, Acc) ->
                  _ = agent_providers:cancel(Ref),
                  Frame = frame(reply, Kind, [error], Id, Fence, agent_native:wire_encode(error, Error)),
                  closed(Ref, push({Frame, true, none}, Acc))
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
        {value, {Frame, true, After}} ->
            case framework_adapter_credit:take(iolist_size(Frame), Credit) of
                {ok, Credit1} ->
                    grant(After),
                    drain(Credit1, queue:drop(Waiting), [Frame | Acc], C);
                wait ->
                    {lists:reverse(Acc), Credit, C#calls{waiting = Waiting}}
            end;
        {value, {Frame, false, After}} ->
            grant(After),
            drain(Credit, queue:drop(Waiting), [Frame | Acc], C)
    end.

%% @doc Drops what waits to be sent: the task it belongs to has ended.
-spec flush(calls()) -> calls().
flush(C) ->
    C#calls{waiting = queue:new()}.

-spec grant(none | {grant, reference()}) -> ok.
grant(none) ->
    ok;
grant({grant, Ref}) ->
    _ = agent_providers:credit(Ref, 1),
    ok.

-spec refuse(framework_adapter_frame:frame(), agent_error:t(), calls()) -> calls().
refuse(#{call_id := Id, fence := Fence, kind := Number}, Error, C) ->
    Payload = agent_native:wire_encode(error, Error),
    push({framework_adapter_frame:encode(reply, Number, [error], {0, Id}, Fence, Payload), true, none}, C).

-spec reply(framework_adapter_frame:frame(), framework_adapter_frame:call_kind(), [error], binary(), calls()) -> calls().
reply(#{call_id := Id, fence := Fence, kind := Number}, _Kind, Flags, Payload, C) ->
    push({framework_adapter_frame:encode(reply, Number, Flags, {0, Id}, Fence, Payload), true, none}, C).

-spec frame(reply | reply_chunk, framework_adapter_frame:call_kind(), [error | stream], non_neg_integer(),
            non_neg_integer(), binary()) -> iodata().
frame(Type, chat, Flags, Id, Fence, Payload) ->
    framework_adapter_frame:encode(Type, 1, Flags, {0, Id}, Fence, Payload);
frame(Type, _, Flags, Id, Fence, Payload) ->
    framework_adapter_frame:encode(Type, 2, Flags, {0, Id}, Fence, Payload).

-spec push(out(), calls()) -> calls().
push(Out, C = #calls{waiting = Waiting}) ->
    C#calls{waiting = queue:in(Out, Waiting)}.

-spec closed(reference(), calls()) -> calls().
closed(Ref, C = #calls{open = Open}) ->
    C#calls{open = maps:remove(Ref, Open)}.
