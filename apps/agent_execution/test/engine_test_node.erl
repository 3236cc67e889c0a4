%% @doc For the suites: the applications up to the engine, in this node, on the echo provider and a folder of their own.
-module(engine_test_node).

-export([start/1, start/2, stop/0]).
-export([submit/1, eventually/1, eventually/2, task/1, ended/1, until_ended/1]).

-define(APPS, [agent_execution, agent_adapters, agent_providers, agent_store, agent_native, agent_core]).

start(Dir) ->
    start(Dir, #{}).

start(Dir, Extra) ->
    Models = #{"default" => "echo", "slow" => "echo?latency=400ms", "hang" => "echo?latency=60000ms",
               "broken" => "echo?fail=503", "refused" => "echo?fail=401",
               "tool" => "echo?tool=calculate&args={\\\"expression\\\":\\\"6*7\\\"}",
               "drip" => "echo?tokens=40&each=20ms"},
    Native = io_lib:format("{\"server\":{\"address\":\"127.0.0.1:0\",\"tls\":null},\"store\":{\"location\":{\"file\":\"~s\"}},"
                           "\"providers\":{\"echo\":{\"dialect\":\"echo\",\"models\":[],\"concurrency\":1024}},"
                           "\"models\":{~s},\"tenants\":{}}",
                           [filename:join(Dir, "test.db"),
                            lists:join(",", [model(A, N) || {A, N} <- maps:to_list(Models)])]),
    agent_config:put(maps:merge(#{server => #{data_dir => unicode:characters_to_binary(Dir)},
                                  native => unicode:characters_to_binary(Native)}, Extra)),
    {ok, _} = application:ensure_all_started(agent_execution),
    ok = native_subsystem:await(store_watcher, 10000),
    eventually(fun() -> sys:get_state(agent_registry) =:= loaded end).

model(Alias, Name) ->
    io_lib:format("\"~s\":{\"endpoints\":[{\"provider\":\"echo\",\"name\":\"~s\",\"priority\":1}]}", [Alias, Name]).

stop() ->
    [application:stop(A) || A <- ?APPS],
    ok.

%% @doc Submits; what is given goes into the task.
submit(Map) ->
    Defaults = #{description => <<"what is said is said">>, agent_type => <<"assistant">>, tenant => <<"default">>},
    {ok, Header, Payload} = agent_native:task_encode(maps:merge(Defaults, Map)),
    agent_engine:submit(Header, Payload).

task(Id) ->
    {ok, Task} = agent_store:read({task, Id}),
    Task.

ended(Id) ->
    case agent_store:read({task, Id}) of
        {ok, #{state := State}} -> lists:member(State, [succeeded, failed, cancelled, timed_out]);
        {error, _} -> false
    end.

until_ended(Id) ->
    eventually(fun() -> ended(Id) end, 20000),
    task(Id).

eventually(Fun) ->
    eventually(Fun, 10000).

eventually(Fun, WithinMs) ->
    until(Fun, erlang:monotonic_time(millisecond) + WithinMs).

until(Fun, Deadline) ->
    case Fun() of
        true -> ok;
        false ->
            case erlang:monotonic_time(millisecond) > Deadline of
                true -> error({not_in_time, Fun()});
                false -> receive after 20 -> until(Fun, Deadline) end
            end
    end.
