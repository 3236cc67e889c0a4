%% @doc Tools that the engine itself serves, for native agents and for workers.
%%
%% What depends on the moment (`now') is recorded, so that a later attempt asks its model the same questions; the rest is computed again.
-module(engine_tools).

-export([run/4]).
-export([served/2]).

-export_type([attempt/0]).

%% An attempt with a journal; none outside of one, and for ephemeral tasks.
-type attempt() :: none | #{task_id := binary(), fence := pos_integer(), attempt := pos_integer(), _ => _}.

%% Longest wait for the journal, in ms: a store in trouble costs the repetition of an answer, not the task's time.
-define(JOURNAL_TIMEOUT_MS, 1000).

%% @doc Runs a tool with JSON text; gives its text and whether it failed. `Occurrence': which of several equal calls, from 0.
-spec run(attempt(), Name :: binary(), Arguments :: binary(), Occurrence :: non_neg_integer()) -> {binary(), IsError :: boolean()}.
run(#{task_id := Id, fence := Fence, attempt := N} = Attempt, <<"now">> = Name, Arguments, Occurrence) ->
    Scope = maps:with([scope, life], Attempt),
    Call = Scope#{name => Name, arguments => Arguments, occurrence => Occurrence, replay => journaled},
    Again = N > 1 orelse maps:get(life, Scope, 1) > 1 orelse maps:get(replay, Attempt, false),
    case Again andalso agent_store:write({tool_begin, Id, Fence, Call}, ?JOURNAL_TIMEOUT_MS) of
        {ok, {recorded, #{content := Content, is_error := IsError}}} ->
            {Content, IsError};
        _ ->
            {Content, IsError} = call(Name, Arguments),
            agent_store:cast({tool_end, Id, Fence, Call#{content => Content, is_error => IsError}}),
            {Content, IsError}
    end;
run(_, Name, Arguments, _) ->
    call(Name, Arguments).

-spec call(binary(), binary()) -> {binary(), boolean()}.
call(Name, Arguments) ->
    case agent_native:tool_call(Name, Arguments) of
        {ok, Content} -> {Content, false};
        {tool_error, Content} -> {Content, true};
        {error, unknown_tool} -> {<<"there is no tool named ", Name/binary>>, true};
        {error, _} -> {<<"the tool is not available now">>, true}
    end.

%% @doc Names of tools in the task or else in its agent that the engine serves.
-spec served(Agent :: map(), Header :: map()) -> [binary()].
served(Agent, Header) ->
    Wanted = case maps:get(tools, Header, []) of [] -> maps:get(tools, Agent, []); Tools -> Tools end,
    [T || T <- Wanted, T =:= <<"now">> orelse T =:= <<"calculate">>].
