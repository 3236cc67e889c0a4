%% @doc The steps around a run, `optimize_task_for_framework' and `enhance_framework_result': what a task brings is cut to what its
%% model can read, and what comes back is held against its schema.
%%
%% `[agent_execution] performance_optimization' says how much of it is done around frameworks, `native_optimization' around the native
%% agent; `[native_capabilities] performance_optimization = false' switches the first off.
-module(execution_around).

-export([effort/1]).
-export([optimize/4]).
-export([tool_limit/1]).
-export([check/3]).
-export([repair/1]).
-export([repaired/3]).

-export_type([effort/0]).

-type effort() :: off | balanced | aggressive.

%% Part of the model's window, beside the rest of the prompt and the answer, that a conversation may take, in percent.
-define(BALANCED_PERCENT, 100).
-define(AGGRESSIVE_PERCENT, 50).
%% Tools that a model is shown at most; more of them cost tokens and make it choose worse.
-define(BALANCED_TOOLS, 32).
-define(AGGRESSIVE_TOOLS, 12).
%% Model calls of a repair: the second tells the model what was wrong with the first.
-define(REPAIR_STEPS, 2).

%% @doc How much is done around the runs of an executor.
-spec effort(Executor :: binary()) -> effort().
effort(<<"native">>) ->
    word(agent_config:get([agent_execution, native_optimization], <<"balanced">>));
effort(_) ->
    case agent_config:get([native_capabilities, performance_optimization], true) of
        true -> word(agent_config:get([agent_execution, performance_optimization], <<"balanced">>));
        false -> off
    end.

-spec word(binary()) -> effort().
word(<<"aggressive">>) -> aggressive;
word(<<"off">>) -> off;
word(_) -> balanced.

%% @doc The payload as its executor is given it, and what is said of that among the task's events.
%%
%% The oldest whole turns of a conversation that does not fit the window of its model are left out. A model whose window nobody has
%% configured (`context_tokens') is given everything.
-spec optimize(Payload :: agent_native:payload(), Agent :: map(), Header :: map(), Executor :: binary()) ->
    {agent_native:payload(), [execution_events:event()]}.
optimize(Payload, _, #{has_plan := true}, _) ->
    {Payload, []};
optimize(Payload, Agent, Header, Executor) ->
    case agent_native:task_history(Payload) of
        N when is_integer(N), N > 0 -> trimmed(Payload, Agent, Header, percent(effort(Executor)));
        _ -> {Payload, []}
    end.

-spec percent(effort()) -> none | pos_integer().
percent(off) -> none;
percent(balanced) -> ?BALANCED_PERCENT;
percent(aggressive) -> ?AGGRESSIVE_PERCENT.

-spec trimmed(agent_native:payload(), map(), map(), none | pos_integer()) -> {agent_native:payload(), [execution_events:event()]}.
trimmed(Payload, _, _, none) ->
    {Payload, []};
trimmed(Payload, Agent, Header, Percent) ->
    Window = agent_providers:window(agent_providers:model(Agent, Header)),
    case Window > 0 andalso agent_native:task_trim(Payload, maps:get(payload, Agent, <<>>), Window, Percent) of
        {trimmed, Shorter, LeftOut, Of} ->
            Text = io_lib:format("~b of the conversation's ~b messages are left out, the oldest whole turns: the model reads ~b tokens",
                                 [LeftOut, Of, Window]),
            {Shorter, [said(iolist_to_binary(Text))]};
        _ ->
            {Payload, []}
    end.

%% @doc How many tools a model is shown at most; 0: all.
-spec tool_limit(Executor :: binary()) -> non_neg_integer().
tool_limit(Executor) ->
    case effort(Executor) of
        off -> 0;
        balanced -> ?BALANCED_TOOLS;
        aggressive -> ?AGGRESSIVE_TOOLS
    end.

%% @doc What a framework gave, held against the task's schema: good, or the native run that says it again in its form. Switched off it
%% is checked all the same, and not repaired.
-spec check(Payload :: agent_native:payload(), Props :: map(), Executor :: binary()) ->
    {ok, map()} | {repair, agent_native:payload()} | {error, agent_error:t()}.
check(Payload, #{result := Result} = Props, Executor) when is_binary(Result) ->
    case agent_native:task_has_schema(Payload) =:= true andalso agent_native:result_check(Payload, Result) of
        {read, Read} ->
            {ok, Props#{result := Read}};
        {misfit, Repair, Why} ->
            case effort(Executor) of
                off -> {error, agent_error:new(output_schema_mismatch, Why)};
                _ -> {repair, Repair}
            end;
        {error, #{reason := _} = Error} ->
            {error, Error};
        _ ->
            {ok, Props}
    end;
check(_, Props, _) ->
    {ok, Props}.

%% @doc What of a native step's specification is another one for a repair, and what is said of it.
-spec repair(Spec :: #{header := map(), agent := map(), payload := agent_native:payload(), _ => _}) ->
    {map(), execution_events:event()}.
repair(#{header := Header, agent := Agent} = Spec) ->
    Own = Header#{tools => [], max_steps => ?REPAIR_STEPS, stream_text => false, has_plan => false},
    %% Not the agent's words: they are about what it does, and this is about how it says it.
    Bare = #{id => maps:get(id, Agent, <<>>), model => agent_providers:model(Agent, Header), tools => [], payload => <<>>},
    {Spec#{header := Own, agent := Bare},
     said(<<"the answer does not match requirements.output_schema; a model call says it again in that form">>)}.

%% @doc The properties of the whole run from those of its repair.
-spec repaired(Status :: atom(), Repair :: map(), Original :: map()) -> {succeeded | failed, map()}.
repaired(succeeded, #{result := By} = Repair, #{result := Result} = Original) ->
    {succeeded, Original#{result := agent_native:result_repaired(Result, By), journal => maps:get(journal, Repair, [])}};
repaired(_, Repair, Original) ->
    {failed, maps:merge(Original, maps:with([error], Repair))}.

-spec said(binary()) -> execution_events:event().
said(Text) ->
    {log, #{level => info, source => <<"optimization">>, message => Text}}.
