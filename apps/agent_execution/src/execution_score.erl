%% @doc What history and load take from an executor's points: pure, in terms that a person can check.
%%
%% Each part is 0 or less, and all of them together are less than the 10 points between two rules of {@link execution_router}: what
%% is learned decides between equals and never against the configuration.
%%
%% ```
%% success   5.0 x the share of ends that failed
%% latency   1.5 x (1 - fastest mean / own mean)
%% cost      1.5 x (1 - cheapest mean / own mean)
%% queue     1.5 x running and waiting tasks against twice its slots, at most 1.5
%% '''
%% Below the minimum of ends the history counts nothing, in neither direction.
-module(execution_score).

-export([parts/3]).
-export([total/1]).
-export([none/0]).

-export_type([parts/0]).

-define(SUCCESS, 5.0).
-define(LATENCY, 1.5).
-define(COST, 1.5).
-define(QUEUE, 1.5).
%% Means below these are equal: a part of a millisecond, or of a cent, is no reason to go elsewhere. In ms, and in micro-dollars.
-define(SAME_MS, 5.0).
-define(SAME_COST, 100.0).

-type parts() :: {Success :: float(), Latency :: float(), Cost :: float(), Queue :: float(), Samples :: float()}.

%% @doc Parts by executor, of those of which anything is known.
-spec parts(#{Executor => execution_history:row()}, #{Executor => Load :: float()}, Minimum :: number()) -> #{Executor => parts()} when
    Executor :: binary().
parts(History, Loads, Minimum) ->
    Known = [R || R = #{samples := N} <- maps:values(History), N >= Minimum],
    Fastest = least([Ms || #{ms := Ms} <- Known], ?SAME_MS),
    Cheapest = least([C || #{cost := C} <- Known, C =/= unknown], ?SAME_COST),
    maps:from_list([{E, of_one(maps:get(E, History, none), maps:get(E, Loads, 0.0), Fastest, Cheapest, Minimum)}
                    || E <- lists:usort(maps:keys(History) ++ maps:keys(Loads))]).

-spec least([float()], float()) -> float().
least([], Floor) -> Floor;
least(Values, Floor) -> max(Floor, lists:min(Values)).

-spec of_one(execution_history:row() | none, float(), float(), float(), number()) -> parts().
of_one(#{samples := N, success := Success, ms := Ms, cost := Cost}, Load, Fastest, Cheapest, Minimum) when N >= Minimum ->
    {-?SUCCESS * (1.0 - Success), -?LATENCY * beyond(Fastest, Ms),
     case Cost of unknown -> 0.0; _ -> -?COST * beyond(Cheapest, Cost) end, queue(Load), N};
of_one(#{samples := N}, Load, _, _, _) ->
    {0.0, 0.0, 0.0, queue(Load), N};
of_one(none, Load, _, _, _) ->
    {0.0, 0.0, 0.0, queue(Load), 0.0}.

-spec beyond(float(), float()) -> float().
beyond(Best, Own) when Own > Best -> 1.0 - Best / Own;
beyond(_, _) -> 0.0.

-spec queue(float()) -> float().
queue(Load) -> -?QUEUE * min(1.0, Load / 2.0).

%% @doc The sum of the parts.
-spec total(parts()) -> float().
total({Success, Latency, Cost, Queue, _}) -> Success + Latency + Cost + Queue.

%% @doc Of an executor of which nothing is known.
-spec none() -> parts().
none() -> {0.0, 0.0, 0.0, 0.0, 0.0}.
