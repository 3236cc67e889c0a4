%% @doc Who runs a task: a pure function of the request, the configuration and the state of the executors.
%%
%% Every executor that could be meant becomes a candidate with a score and, where it cannot be, the reason. The first rule
%% that speaks of the task wins:
%%
%% ```
%% 100 the task says so (method, preferred_framework)      60 [frameworks] X.use_for names its type
%%  90 the task's own fallback_frameworks, in order        50 the default method's executor
%%  80 the agent is made for an executor                   20 anything else that could run it
%%  70 [framework_preferences] <type>_tasks
%% '''
%% The best candidate that is not refused runs the task. If a better one was refused, that replacement needs
%% `framework_fallback' or the task's own list; without either, the answer is FRAMEWORK_UNAVAILABLE with the remedy.
-module(execution_router).

-export([route/3]).
-export([config/1]).

-export_type([request/0, world/0, config/0, route/0]).

%% A failing executor loses up to so many points, never enough to overtake a rule above it.
-define(MAX_PENALTY, 8.0).
%% Ends below which a failure rate means nothing.
-define(MIN_SAMPLES, 5).

-type request() :: #{method := auto | native | framework | hybrid, framework => binary(), fallback_frameworks => [binary()],
                     task_type => binary(), agent_framework => binary(), tools => [binary()], agent_tools => [binary()]}.
-type world() :: #{Framework :: binary() => ok | {unavailable, binary()}
                 , stats => #{Executor :: binary() => #{ok := non_neg_integer(), failed := non_neg_integer()}}}.
-type config() :: #{default := native | framework_preferred | auto, fallback := boolean(),
                    frameworks := #{binary() => #{enabled := boolean(), use_for := [binary()]}},
                    preferences := #{TaskType :: binary() => Executor :: binary()}}.
-type candidate() :: #{executor := binary(), score := float(), refused := binary()}.
-type route() :: #{executor := binary(), candidates := [candidate()], reason := binary()}.

%% @doc Chooses. Never asks anybody: `World' was read before.
-spec route(request(), world(), config()) -> {ok, route()} | {error, agent_error:t()}.
route(#{method := hybrid} = Request, World, Config) ->
    %% It came with a plan, whose steps name their executors.
    route(Request#{method := auto}, World, Config);
route(Request, World, Config) ->
    Ranked = rank([judge(C, Request, World, Config) || C <- unique(candidates(Request, World, Config))]),
    choose(Ranked, Request, Config).

%% @doc The configuration's sections as the router reads them, with the defaults.
-spec config(fun(([atom()], term()) -> term())) -> config().
config(Get) ->
    Frameworks = Get([frameworks], #{}),
    Preferences = Get([framework_preferences], #{}),
    #{default => default_method(engine_names:binary(Get([agent_execution, default_execution_method], <<"native">>))),
      fallback => Get([agent_execution, framework_fallback], false) =:= true,
      frameworks => maps:fold(fun(Name, F, Acc) -> Acc#{engine_names:binary(Name) => framework(F)} end, #{}, Frameworks),
      preferences => maps:fold(fun preference/3, #{}, Preferences)}.

-spec default_method(binary()) -> native | framework_preferred | auto.
default_method(<<"framework_preferred">>) -> framework_preferred;
default_method(<<"auto">>) -> auto;
default_method(_) -> native.

-spec framework(map()) -> #{enabled := boolean(), use_for := [binary()]}.
framework(F) ->
    #{enabled => engine_names:lookup(enabled, F, true) =/= false,
      use_for => [task_type(engine_names:binary(T)) || T <- engine_names:lookup(use_for, F, [])]}.

%% `research_tasks = "langchain"'.
-spec preference(atom() | binary(), atom() | binary(), map()) -> map().
preference(Key, Executor, Acc) ->
    Name = engine_names:binary(Key),
    case binary:longest_common_suffix([Name, <<"_tasks">>]) of
        6 -> Acc#{task_type(binary:part(Name, 0, byte_size(Name) - 6)) => engine_names:binary(Executor)};
        _ -> Acc
    end.

-spec task_type(binary()) -> binary().
task_type(<<"conversational">>) -> <<"conversation">>;
task_type(Type) -> Type.

%% ---- candidates: {Executor, Score, Why}, best rule first

-spec candidates(request(), world(), config()) -> [{binary(), float(), binary()}].
candidates(#{method := native}, _, _) ->
    [{<<"native">>, 100.0, <<"the task says native">>}];
candidates(#{method := Method} = R, World, Config) ->
    Named = case maps:get(framework, R, <<>>) of
                <<>> -> [];
                <<"auto">> -> [];
                F -> [{F, 100.0, <<"the task names it">>}]
            end,
    Own = own_fallbacks(maps:get(fallback_frameworks, R, []), 90.0),
    All = Named ++ Own ++ agent(R) ++ by_type(R, Config) ++ general(World, Config),
    case Method of
        framework -> framework_first(All);
        auto -> All
    end.

%% A framework was asked for: native is at most a replacement.
-spec framework_first([{binary(), float(), binary()}]) -> [{binary(), float(), binary()}].
framework_first(All) ->
    [C || C = {E, _, _} <- All, E =/= <<"native">>] ++ [{<<"native">>, 10.0, <<"in place of a framework">>}].

-spec own_fallbacks([binary()], float()) -> [{binary(), float(), binary()}].
own_fallbacks([], _) -> [];
own_fallbacks([F | Rest], Score) -> [{F, Score, <<"the task's own fallback">>} | own_fallbacks(Rest, Score - 1.0)].

-spec agent(request()) -> [{binary(), float(), binary()}].
agent(#{agent_framework := F}) when F =/= <<>>, F =/= <<"auto">> -> [{F, 80.0, <<"the agent is made for it">>}];
agent(_) -> [].

-spec by_type(request(), config()) -> [{binary(), float(), binary()}].
by_type(R, #{preferences := Preferences, frameworks := Frameworks}) ->
    Type = task_type(maps:get(task_type, R, <<"general">>)),
    Preferred = case Preferences of
                    #{Type := P} -> [{P, 70.0, <<"preferred for ", Type/binary, " tasks">>}];
                    #{} -> []
                end,
    Preferred ++ [{F, 60.0, <<"used for ", Type/binary, " tasks">>}
                  || {F, #{use_for := Types}} <- lists:sort(maps:to_list(Frameworks)), lists:member(Type, Types)].

-spec general(world(), config()) -> [{binary(), float(), binary()}].
general(World, #{default := Default, frameworks := Frameworks}) ->
    Known = lists:usort([F || F <- maps:keys(World) ++ maps:keys(Frameworks), is_binary(F), F =/= <<"native">>,
                              F =/= <<"custom">>]),
    {Native, Framework} = case Default of framework_preferred -> {20.0, 50.0}; _ -> {50.0, 20.0} end,
    [{<<"native">>, Native, <<"the default method">>} || Native > Framework]
        ++ [{F, Framework, <<"an enabled framework">>} || F <- Known]
        ++ [{<<"native">>, Native, <<"no framework is needed">>} || Native < Framework].

-spec unique([{binary(), float(), binary()}]) -> [{binary(), float(), binary()}].
unique(Candidates) ->
    {List, _} = lists:foldl(fun(C = {E, _, _}, {Acc, Seen}) ->
                                case Seen of
                                    #{E := _} -> {Acc, Seen};
                                    #{} -> {[C | Acc], Seen#{E => true}}
                                end
                            end, {[], #{}}, Candidates),
    lists:reverse(List).

%% ---- judging

-spec judge({binary(), float(), binary()}, request(), world(), config()) -> {candidate(), binary()}.
judge({Executor, Score, Why}, Request, World, Config) ->
    Refused = refused(Executor, Request, World, Config),
    {#{executor => Executor, score => Score - penalty(Executor, World), refused => Refused}, Why}.

-spec refused(binary(), request(), world(), config()) -> binary().
refused(<<"native">>, R, _, _) ->
    Wanted = case maps:get(tools, R, []) of [] -> maps:get(agent_tools, R, []); Tools -> Tools end,
    case [T || T <- Wanted, not lists:member(T, [<<"now">>, <<"calculate">>])] of
        [] -> <<>>;
        [Tool | _] -> <<"the native agent has no tool ", Tool/binary>>
    end;
refused(Framework, _, World, #{frameworks := Frameworks}) ->
    Env = engine_names:environment(Framework),
    case {maps:get(Framework, Frameworks, maps:get(Env, Frameworks, #{enabled => true})), World} of
        {#{enabled := false}, _} ->
            <<"disabled in the configuration; set enabled = true in [frameworks]">>;
        {_, #{Env := ok}} -> <<>>;
        {_, #{Env := {unavailable, Reason}}} -> Reason;
        {_, _} -> <<"framework ", Framework/binary, " has no adapter in this version">>
    end.

%% Failures of late cost points, so that of two equal candidates the healthy one is taken.
-spec penalty(binary(), world()) -> float().
penalty(Executor, #{stats := Stats}) ->
    case Stats of
        #{Executor := #{ok := Ok, failed := Failed}} when Ok + Failed >= ?MIN_SAMPLES ->
            ?MAX_PENALTY * Failed / (Ok + Failed);
        #{} -> 0.0
    end;
penalty(_, _) ->
    0.0.

-spec rank([{candidate(), binary()}]) -> [{candidate(), binary()}].
rank(Judged) ->
    lists:sort(fun({#{score := A}, _}, {#{score := B}, _}) -> A >= B end, Judged).

-spec choose([{candidate(), binary()}], request(), config()) -> {ok, route()} | {error, agent_error:t()}.
choose(Ranked, Request, #{fallback := Fallback}) ->
    Candidates = [C || {C, _} <- Ranked],
    {Before, After} = lists:splitwith(fun({#{refused := R}, _}) -> R =/= <<>> end, Ranked),
    %% General candidates (50 and below) are nobody's wish: passing over them is no replacement.
    Wished = [C || {C = #{score := S}, _} <- Before, S > 50.0],
    case {After, Wished} of
        {[{#{executor := E}, Why} | _], []} ->
            {ok, #{executor => E, candidates => Candidates, reason => Why}};
        {[{#{executor := E, score := S}, _} | _], [First | _]} ->
            #{executor := Missed, refused := Reason} = First,
            Asked = maps:get(method, Request) =:= framework orelse maps:get(framework, Request, <<>>) =/= <<>>,
            Own = S > 80.0 andalso S =< 90.0,
            case Own orelse Fallback of
                true -> {ok, #{executor => E, candidates => Candidates,
                               reason => <<"in place of ", Missed/binary, ": ", Reason/binary>>}};
                false -> unavailable(Missed, Reason, Asked)
            end;
        {[], [#{executor := Missed, refused := Reason} | _]} ->
            unavailable(Missed, Reason, true);
        {[], []} ->
            [#{executor := Missed, refused := Reason} | _] = Candidates,
            unavailable(Missed, Reason, true)
    end.

-spec unavailable(binary(), binary(), boolean()) -> {error, agent_error:t()}.
unavailable(<<"native">>, Reason, _) ->
    {error, agent_error:new(unsupported_field, Reason, #{<<"executor">> => <<"native">>})};
unavailable(Framework, Reason, Asked) ->
    Hint = case Asked of
               true -> <<>>;
               false -> <<" (or set agent_execution.framework_fallback = true)">>
           end,
    {error, agent_error:new(framework_unavailable, <<Framework/binary, ": ", Reason/binary, Hint/binary>>,
                            #{<<"framework">> => Framework})}.
